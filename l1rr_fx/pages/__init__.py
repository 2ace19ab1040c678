"""A saved network as one HTML page: in goes a `Pruned`, out comes text that needs no other file and no connection.

network_page      the page
drawing           the network's layers and joins, placed for a picture
report.html.j2    the page's template
"""

from __future__ import annotations

from l1rr_fx.pages.network_page import page_of

__all__ = ["page_of"]
