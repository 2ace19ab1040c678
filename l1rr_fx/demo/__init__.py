"""The main job, shown: a trained tree detector loses its zeroed channels, on a real aerial image (`run.run`)."""
