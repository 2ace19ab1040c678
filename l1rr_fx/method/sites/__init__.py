"""Sites: in goes a model with an example input, out come the places where its channels can be zeroed.

zeroing         `ChannelSite`, and a model with some of its channels zero
producers       the calls of a network that make or scale channels, their units and groups
blocked         what blocks a channel: the one analysis, from the compiler's own plan
channel_sites   `channel_sites`: the sites that training and planning work on
budget          `Budget`: the limits; the cost of a model with some channels zero
inspection      `inspect`: the layers as a table, before anything is trained
"""
