"""Who may go where: hosts in one spelling, rules, the table of a topology, the addresses that are inside."""

import ipaddress
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinue.pipes import AccessDenied
from retinue.services.tcpip import Config
from retinue.services.tcpip.destination import BadHost, Destination, Protocol, read_destination, read_host, read_socket
from retinue.services.tcpip.inside import is_inside, is_own, lies_inside
from retinue.services.tcpip.policy import Policy
from retinue.services.tcpip.rule import BadRule, parse_rule
from retinue.svm import config as svm_config
from retinue.svm.errors import ConfigError

IP = ipaddress.ip_address


def to(text: str) -> Destination:
    """``"api.example.org:443"``, with ``udp:`` before it and brackets as in a rule; or ``"unix:/dev/log"``."""
    if text.startswith("unix:"):
        return read_socket(text.removeprefix("unix:"))
    protocol: Protocol = "udp" if text.startswith("udp:") else "tcp"
    host, _, port = text.removeprefix("udp:").rpartition(":")
    return read_destination(protocol, host.strip("[]"), int(port))


# -- hosts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("192.0.2.7", IP("192.0.2.7")),
        ("2001:DB8:0::7", IP("2001:db8::7")),
        ("::ffff:10.0.0.1", IP("10.0.0.1")),
        ("::ffff:7f00:1", IP("127.0.0.1")),
        ("API.Example.ORG", "api.example.org"),
        ("api.example.org.", "api.example.org"),
        ("localhost", "localhost"),
        ("_dmarc.example.org", "_dmarc.example.org"),
        ("1.example", "1.example"),
        ("Bücher.example", "xn--bcher-kva.example"),
        ("straße.example", "xn--strae-oqa.example"),
        ("api。example。org", "api.example.org"),
    ],
)
def test_host_has_one_spelling(text: str, host: Any) -> None:
    """Capitals, a dot at the end, IDNA and IPv4 in IPv6 make no other host of it."""
    assert read_host(text) == host


@pytest.mark.parametrize(
    "text",
    [
        *("127.1", "0x7f.1", "0x7f000001", "2130706433", "0177.0.0.1", "127.0.0.01", "1.2.3.4.", "127.0.0.1.", "0x"),
        *("fe80::1%eth0", "[::1]", "127.0.0.1%25", "1.2.3.256", "１２７.1", "１２７.０.０.１"),
        *("", ".", "a..b", "-a.example", "a-.example", "a b", "a/b", "a:80", "*.example.org", "a\0b", "a\n", "\ud800"),
        *("a" * 64, ("a" * 60 + ".") * 5, "é" * 10_000, "xn--\N{SNOWMAN}."),
    ],
)
def test_what_is_neither_address_nor_name_is_refused(text: str) -> None:
    """Above all what a C library would take for an address though it is not written as one."""
    with pytest.raises(BadHost, match="is no host"):
        read_host(text)


@given(st.text(max_size=300) | st.from_regex(r"[0-9a-fx.:%\[\]*]{1,40}", fullmatch=True))
def test_host_is_read_or_refused_and_reading_it_again_changes_nothing(text: str) -> None:
    """Whatever a machine sends: BadHost, an address, or a name in its final spelling."""
    try:
        host = read_host(text)
    except BadHost:
        return
    assert read_host(str(host)) == host
    if isinstance(host, str):
        assert host.isascii()
        assert host == host.lower().removesuffix(".")
        with pytest.raises(ValueError, match=r"."):
            ipaddress.ip_address(host)


@given(st.ip_addresses())
def test_every_address_reads_as_itself(address: Any) -> None:
    """An IPv4 address in IPv6 is IPv4; every other address is what it is."""
    mapped = getattr(address, "ipv4_mapped", None)
    assert read_host(str(address)) == (mapped or address)
    assert read_host(address.exploded) == (mapped or address)


@pytest.mark.parametrize(("host", "port"), [(b"a", 1), (None, 1), (["a"], 1), ("a", 0), ("a", 65536), ("a", True)])
def test_destination_of_other_types_is_refused(host: Any, port: Any) -> None:
    """What comes over a path may be anything."""
    with pytest.raises(ValueError, match=r"the host|the port"):
        read_destination("tcp", host, port)


# -- rules ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "allowed", "denied"),
    [
        (
            "api.example.org:443",
            ["api.example.org:443", "API.example.org.:443"],
            [
                "api.example.org:80",
                "example.org:443",
                "x.api.example.org:443",
                "udp:api.example.org:443",
                "8.8.8.8:443",
            ],
        ),
        (
            "*.example.org:443",
            ["api.example.org:443", "a.b.example.org:443"],
            ["example.org:443", "badexample.org:443", "example.org.evil.example:443", "api.example.org:444"],
        ),
        ("Bücher.example:1", ["xn--bcher-kva.example:1"], ["bucher.example:1"]),
        ("127.0.0.1:6379", ["127.0.0.1:6379", "::ffff:127.0.0.1:6379"], ["127.0.0.2:6379", "localhost:6379"]),
        ("10.0.0.0/8:5432", ["10.255.0.1:5432", "::ffff:10.1.1.1:5432"], ["11.0.0.1:5432", "10.0.0.1:5433"]),
        ("[2001:db8::/32]:443", ["[2001:db8:1::1]:443"], ["[2001:db9::1]:443", "8.8.8.8:443"]),
        ("[::1]:80", ["[::1]:80"], ["127.0.0.1:80"]),
        ("udp:192.0.2.53:53", ["udp:192.0.2.53:53"], ["192.0.2.53:53", "udp:192.0.2.53:54"]),
        ("a.example:8000-8100", ["a.example:8000", "a.example:8100"], ["a.example:7999", "a.example:8101"]),
        ("a.example:*", ["a.example:1", "a.example:65535"], ["b.example:1"]),
        (
            "0.0.0.0/0:443",
            ["8.8.8.8:443"],
            ["127.0.0.1:443", "169.254.169.254:443", "10.0.0.1:443", "0.0.0.0:443", "224.0.0.1:443", "[2600::1]:443"],
        ),
        ("[::/0]:443", ["[2600::1]:443"], ["[::1]:443", "[fe80::1]:443", "[fc00::1]:443", "[64:ff9b::7f00:1]:443"]),
        ("169.254.169.254:80", ["169.254.169.254:80"], []),
        ("unix:/dev/log", ["unix:/dev/log"], ["unix:/dev/log2", "unix:/dev/l", "unix:@/dev/log", "log.example:443"]),
        ("unix:@*", ["unix:@*"], ["unix:@a"]),
    ],
)
def test_rule_allows_what_it_says_and_nothing_else(rule: str, allowed: list[str], denied: list[str]) -> None:
    """Names by name, addresses by address; a net that holds public addresses is the public ones."""
    parsed = parse_rule(rule)
    for text in allowed:
        assert parsed.names(to(text)) or parsed.covers(to(text)), text
    for text in denied:
        assert [parsed.names(to(text)), parsed.covers(to(text))] == [False, False], text


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ("api.example.org", "it has no port"),
        ("api.example.org:", "is no port"),
        ("api.example.org:0", "is no port"),
        ("api.example.org:65536", "is no port"),
        ("api.example.org:90-80", "is no port"),
        ("api.example.org:+1", "is no port"),
        ("api.example.org:80:90", "stands in brackets"),
        ("::1:80", "stands in brackets"),
        ("[::1]", "after an IPv6 address in brackets"),
        ("[::1:80", "after an IPv6 address in brackets"),
        ("[127.0.0.1]:80", "IPv6 addresses stand in brackets"),
        ("[a.example]:80", "only IPv6 addresses stand in brackets"),
        ("[fe80::1%eth0]:80", "without a zone"),
        ("10.0.0.1/8:80", "which is 10.0.0.0/8"),
        ("10.0.0.0/33:80", "is no network"),
        ("10.0.0.0/255.0.0.0:80", "its number of bits"),
        ("[::ffff:10.0.0.0/104]:80", "it is written as IPv4"),
        ("127.1:80", "in full and in decimal"),
        ("*:443", "every address is 0.0.0.0/0"),
        ("a.*.org:443", "at the beginning"),
        ("*a.org:443", "at the beginning"),
        ("*.:443", "a name has"),
        ("https://api.example.org:443", "in brackets"),
        ("", "it has no port"),
        ("udp:53", "it has no port"),
        ("unix:log", "an absolute path without detours"),
        ("unix:", "an absolute path without detours"),
        ("unix:///dev/log", "an absolute path without detours"),
        ("unix:/run/*/../log", "an absolute path without detours"),
    ],
)
def test_rule_that_is_none_is_refused_with_what_is_wrong(rule: str, why: str) -> None:
    """Nothing is guessed."""
    with pytest.raises(BadRule, match="is no rule") as caught:
        parse_rule(rule)
    assert why in caught.value.why


@given(st.text(max_size=80) | st.from_regex(r"(udp:)?[\[\]0-9a-f.:*/%-]{1,40}:[0-9*-]{1,11}", fullmatch=True))
def test_any_text_is_a_rule_or_refused(text: str) -> None:
    """A topology may hold anything."""
    try:
        rule = parse_rule(text)
    except BadRule:
        return
    assert 1 <= rule.first_port <= rule.last_port <= 65535
    assert (rule.name is None) != (rule.network is None)


@given(st.ip_addresses() | st.from_regex(r"[a-z][a-z0-9]{0,9}(\.[a-z][a-z0-9]{0,9}){0,3}", fullmatch=True), st.data())
def test_destination_as_text_is_the_rule_for_it_alone(host: Any, data: st.DataObject) -> None:
    """What a refusal says to add is a rule, it allows just that, and another port stays denied."""
    port = data.draw(st.integers(1, 65535))
    wanted = read_destination(data.draw(st.sampled_from(["tcp", "udp"])), str(host), port)
    rule = parse_rule(str(wanted))
    assert rule.names(wanted) != rule.covers(wanted)
    other = read_destination(wanted.protocol, str(host), port % 65535 + 1)
    assert [rule.names(other), rule.covers(other)] == [False, False]


# -- the table ------------------------------------------------------------------------------------------------------


def test_table_is_checked_whole_and_every_mistake_has_its_key() -> None:
    """Three mistakes in three places are told at once."""
    table = {"listen": {}, "allow": {"SHOP": ["ok.example:1", "a.example"], "shop": [], "*": ["10.0.0.1/8:1"]}}
    with pytest.raises(ConfigError) as caught:
        svm_config.structure(table, Config, "retinue.services.tcpip")
    assert [mistake.keys for mistake in caught.value.mistakes] == [
        ("allow", "SHOP", 1),
        ("allow", "shop"),
        ("allow", "*", 0),
    ]
    assert 'such as "SHOP"' in caught.value.mistakes[1].text


@pytest.mark.parametrize(
    "allow", [["a.example:1"], {"SHOP": "a.example:1"}, {"SHOP": [1]}, {"SHOP": {"a.example": 1}}, "a.example:1"]
)
def test_table_of_another_shape_is_a_mistake_at_its_key(allow: Any) -> None:
    """A list for all, a text for a list, a number for a rule."""
    with pytest.raises(ConfigError) as caught:
        svm_config.structure({"allow": allow}, Config, "retinue.services.tcpip")
    assert caught.value.mistakes[0].keys[0] == "allow"


def test_rules_are_of_one_machine_or_of_every_one() -> None:
    """``*`` adds to what a machine has; nobody has what stands under another's name."""
    policy = Policy("TCPIP", {"SHOP": ["a.example:1"], "*": ["b.example:1"]})
    policy.check("SHOP", to("a.example:1"))
    policy.check("SHOP", to("b.example:1"))
    policy.check("FILES", to("b.example:1"))
    with pytest.raises(AccessDenied):
        policy.check("FILES", to("a.example:1"))


@pytest.mark.parametrize("wanted", ["api.example.org:443", "udp:192.0.2.53:53", "[2001:db8::7]:443", "unix:/dev/log"])
@pytest.mark.parametrize("allow", [{}, {"SHOP": ["a.example:1"], "*": ["b.example:1"]}])
def test_line_of_a_refusal_allows_it_when_pasted(wanted: str, allow: dict[str, list[str]]) -> None:
    """The refusal names the machine, the place and the line, and the line keeps what was allowed before."""
    with pytest.raises(AccessDenied, match=r"SHOP may not reach .* under \[machines\.TCPIP\]") as caught:
        Policy("TCPIP", allow).check("SHOP", to(wanted))
    line = caught.value.text.partition("put  ")[2].partition("  under")[0]
    pasted = tomllib.loads(f"[machines.TCPIP]\n{line}\n")["machines"]["TCPIP"]["config"]["allow"]
    policy = Policy("TCPIP", {**allow, **pasted})
    policy.check("SHOP", to(wanted))
    assert set(allow.get("SHOP", [])) <= set(pasted["SHOP"])
    with pytest.raises(AccessDenied):
        policy.check("FILES", to(wanted))


def test_line_of_a_refusal_is_bounded() -> None:
    """With hundreds of rules it says what to add and leaves out what is there."""
    policy = Policy("TCPIP", {"SHOP": [f"host{number}.example:1" for number in range(1000)]})
    assert policy.line("SHOP", to("a.example:1")) == 'config.allow.SHOP = [..., "a.example:1"]'


# -- inside ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.255.0.1", "0.0.0.0", "10.0.0.1", "172.31.0.1", "192.168.1.1", "169.254.169.254"),
        *("100.64.0.1", "224.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "fd00::1", "fec0::1", "ff02::1"),
        *("::ffff:8.8.8.8", "::127.0.0.1", "2002:7f00:1::", "2001:0:7f00:1::", "64:ff9b::10.0.0.1", "2001:db8::1"),
    ],
)
def test_inside_is_what_no_public_name_may_lead_to(address: str) -> None:
    """Loopback, private, link-local, multicast, and IPv6 that hides one of these."""
    assert is_inside(IP(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "172.32.0.1", "100.128.0.1", "2600::1", "64:ff9b::8.8.8.8"])
def test_public_addresses_are_not_inside(address: str) -> None:
    """The internet, also through NAT64."""
    assert not is_inside(IP(address))


@given(st.ip_addresses())
def test_nothing_that_python_calls_private_is_public(address: Any) -> None:
    """The table forgets nothing that the interpreter's knows."""
    if address.is_private or address.is_loopback or address.is_link_local or address.is_multicast:
        nat64 = address.version == 6 and address in ipaddress.ip_network("64:ff9b::/96")
        assert is_inside(address) or nat64


def test_a_network_lies_inside_only_as_a_whole() -> None:
    """Whoever writes 10.0.0.0/16 means the inside, whoever writes 8.0.0.0/5 (which holds 10.0.0.0/8) does not."""
    assert lies_inside(ipaddress.ip_network("10.1.0.0/16"))
    assert lies_inside(ipaddress.ip_network("fd00::/8"))
    assert not lies_inside(ipaddress.ip_network("8.0.0.0/5"))
    assert not lies_inside(ipaddress.ip_network("::/0"))


def test_own_addresses_are_known() -> None:
    """This host's addresses are its own, others' are not."""
    assert is_own(IP("127.0.0.1"))
    assert not is_own(IP("203.0.113.7"))
    assert not is_own(IP("2001:db8::7"))
