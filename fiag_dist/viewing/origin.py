"""Who may see what the page shows: nobody's browser but a visitor's, and no other site's page in it."""

import ipaddress
from urllib.parse import urlsplit


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_own_page(origin: str | None, host: str | None, served_on: str) -> bool:
    """Whether a connection comes from a page that was served here, by its HTTP headers; None: not sent, so it is no browser's.

    Any site may have a visitor's browser connect to the visitor's own machine, and what that shows would be the site's; also under a name of the site
    that is made to lead to a loopback address.
    """
    if origin is None:
        return True
    asked = urlsplit(origin)
    return asked.netloc == host and (not is_loopback(served_on) or is_loopback(asked.hostname or ""))
