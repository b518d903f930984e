"""Which hosts are this very machine, for certain: what is sent to them leaves it by no wire and no proxy."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address


def is_this_machine(host: str) -> bool:
    """Whether a name, or an address without brackets, is one of loopback, or the unspecified one."""
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):  # RFC 6761
        return True
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_loopback or address.is_unspecified
