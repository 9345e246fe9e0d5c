"""What is printed of certificates, explanations, plans, samples and events: it reads well, and harms no terminal."""

from typing import Any

import pytest

from retinue.cp.certificates import Certificate
from retinue.cp.cli import changing, events, explain, picture, top, why
from retinue.cp.cli.errors import CommandError
from retinue.cp.cli.output import Paint
from retinue.cp.rates import rates

PLAIN = Paint(False)
HOSTILE = "\x1b[2J\nREADY\x9b"


def harmless(lines: list[str]) -> bool:
    return not any(char < " " or "\x7f" <= char <= "\x9f" for line in lines for char in line)


def certificate(**more: Any) -> dict[str, Any]:
    record = {"time": 1e9, "machine": "SHOP", "severity": 3, "logger": "shop", "message": "no\nluck", "fields": {}}
    made = Certificate(
        time=1e9,
        system="TEST",
        machine="SHOP",
        generation=3,
        cause="exit",
        text="exit status 1: no such luck",
        pid=4711,
        exit_code=1,
        ready=12.0,
        lived=192.0,
        user_s=0.25,
        peak_kib=20_000,
        storage=64 << 20,
        told=(("WEB", "app", "keep"),),
        last_log=(record,),
        last_messages={"WEB.app": [[7, "call", 120, 0.25, "['price']"]]},
        traceback="Traceback (most recent call last):\n  ValueError: no such luck",
        next=("it is started again at once",),
    )
    return made.as_dict() | more


def test_certificate_is_a_page() -> None:
    assert why.page(certificate(), PLAIN)[0] == "SHOP (generation 3) ended: exit status 1: no such luck"
    page = "\n".join(why.page(certificate(), PLAIN)[1:])
    when = page.partition("when")[2].partition("\n")[0].strip()
    assert page == PAGE.replace("WHEN", when).replace("CLOCK", page.partition("SHOP | error")[0].rpartition("\n  ")[2])


PAGE = """\
  cause     exit: its program ended
  when      WHEN
  lived     3m12s, READY for 12s
  process   exit status 1, pid 4711
  used      0.25 s of processor time, 0.00 s in the kernel; at most 19.5M resident
  storage   64M allowed

who was told
  WEB (app)  its paths wait for a successor

its last log lines
  CLOCKSHOP | error: no
  CLOCKSHOP | luck

messages it has not answered
  WEB.app
    call 7, 120B, 0.250 s before: ['price']

traceback
  Traceback (most recent call last):
    ValueError: no such luck

what the control program did next
  it is started again at once"""


def test_certificate_of_little_is_a_short_page() -> None:
    """What is not known is left out."""
    plain = Certificate(1e9, "TEST", "SHOP", 1, "not-made", "the host has no memory").as_dict()
    page = why.page(plain, PLAIN)
    assert [line.split()[0] for line in page[1:]] == ["cause", "when", "lived", "process"]
    assert page[-1] == "  process   it had none"
    assert any("killed by SIGKILL (9)" in line for line in why.page(plain | {"signal": 9, "pid": 5}, PLAIN))
    assert any("killed by signal 99" in line for line in why.page(plain | {"signal": 99}, PLAIN))


def test_certificate_cannot_be_used_to_control_the_terminal() -> None:
    record = {"machine": HOSTILE, "message": HOSTILE, "fields": {HOSTILE: HOSTILE}, "severity": 3, "time": 1.0}
    hostile = certificate(
        text=HOSTILE,
        cause=HOSTILE,
        system=HOSTILE,
        told=[[HOSTILE, HOSTILE, HOSTILE]],
        last_log=[record],
        last_messages={HOSTILE: [[1, HOSTILE, 2, 0.5, HOSTILE]]},
        traceback=HOSTILE,
        next=[HOSTILE],
    )
    assert harmless(why.page(hostile, PLAIN))


@pytest.mark.parametrize("broken", [{"told": [5]}, {"last_messages": {"a": [[1]]}}, {"lived": "long"}, {"text": None}])
def test_certificate_that_cannot_be_shown_is_told(broken: dict[str, Any]) -> None:
    with pytest.raises(CommandError, match="another version"):
        why.page(certificate(**broken), PLAIN)


STEP = {
    "machine": "WEB",
    "edge": "app",
    "to": "SHOP",
    "line": 6,
    "text": 'uses.app = "SHOP"',
    "lazy": False,
    "usable": False,
    "why_not": "SHOP: it is BROKEN",
}


def explanation(**more: Any) -> dict[str, Any]:
    found = {"origin": "WEB", "target": "SHOP", "file": "/nowhere/shop.toml", "allowed": True, "usable": True}
    lists: dict[str, Any] = {"direct": [STEP], "back": [], "through": [], "disks": [], "missing": None, "stale": False}
    return found | lists | more


def test_explanation_of_an_edge_says_why_not_now() -> None:
    assert explain.lines(explanation(usable=False), PLAIN) == [
        "WEB reaches SHOP, but not now".replace("reaches", "may reach"),
        '  WEB.app  /nowhere/shop.toml:6   uses.app = "SHOP"',
        "    SHOP: it is BROKEN",
    ]


def test_explanation_says_what_is_missing() -> None:
    missing = {"text": '\n[machines.WEB.uses]\nshop = "SHOP"', "after": 9, "instead": None, "why": "It is lazy."}
    found = explanation(allowed=False, usable=None, direct=[], through=[[STEP, STEP]], missing=missing, stale=True)
    assert explain.lines(found | {"disks": ["WEB may read the disk SHOP.a"]}, PLAIN) == [
        "WEB may not reach SHOP: no edge leads there",
        "",
        "through others, if they pass on what they are asked:",
        "  WEB --app--> WEB --app--> SHOP",
        "    SHOP: it is BROKEN",
        "    SHOP: it is BROKEN",
        "",
        "without a path:",
        "  WEB may read the disk SHOP.a",
        "",
        "to allow it, add this after line 9 of /nowhere/shop.toml, then retinue apply /nowhere/shop.toml:",
        "",
        "",
        "  [machines.WEB.uses]",
        '  shop = "SHOP"',
        "",
        "It is lazy.",
        "",
        "/nowhere/shop.toml has changed since it was read: the lines are those that it had then",
    ]
    instead = missing | {"after": None, "instead": 4, "text": 'uses = { shop = "SHOP" }', "why": ""}
    lines = explain.lines(explanation(allowed=False, direct=[], missing=instead), PLAIN)
    assert "to allow it, replace line 4 of /nowhere/shop.toml by this" in lines[2]
    impossible = {"text": None, "after": None, "instead": None, "why": "it cannot be"}
    assert explain.lines(explanation(allowed=False, direct=[], missing=impossible), PLAIN)[-1] == "it cannot be"


def test_explanation_cannot_be_used_to_control_the_terminal() -> None:
    step = STEP | {"text": HOSTILE, "why_not": HOSTILE, "edge": HOSTILE}
    hostile = explanation(direct=[step], back=[step], through=[[step]], disks=[HOSTILE], target=HOSTILE, file=HOSTILE)
    assert harmless(explain.lines(hostile, PLAIN))


def test_plan_says_what_and_why() -> None:
    changes: list[dict[str, Any]] = [
        {"kind": "set", "machine": "SHOP", "why": ["share: 100 -> 200"], "line": 9},
        {"kind": "replace", "machine": "PRICES", "why": ["program: a -> b", "disks: none -> a"], "line": 15},
        {"kind": "add", "machine": "STOCK", "why": [], "line": 21},
        {"kind": "remove", "machine": "OLD", "why": ["it is not there"], "line": 0},
        {"kind": "system", "machine": None, "why": [HOSTILE], "line": 1},
        {"kind": "strange", "machine": "X", "why": [], "line": 1},
    ]
    lines = changing.lines(changes, 7, PLAIN, "shop.toml")
    assert harmless(lines)
    assert lines[:3] == ["~ SHOP is changed in place  shop.toml:9", "    share: 100 -> 200", lines[2]]
    assert lines[2].startswith("± PRICES is replaced")
    assert "- OLD is stopped and removed" in lines
    assert lines[-1] == "1 to start, 1 to remove, 1 to replace, 2 to change in place; 3 as they are"
    assert changing.lines([], 1, PLAIN, "shop.toml") == ["nothing to change: 1 machine as shop.toml says"]


def meter(**figures: int) -> dict[str, Any]:
    names = ("sent", "received", "bytes_sent", "bytes_received", "outstanding", "high_water", "dropped", "redelivered")
    return dict.fromkeys(names, 0) | {"latency": [0] * 32} | figures


def sample(time: float, *, pid: int = 5, cpu: float = 1.0, sent: int = 0, records: int | None = None) -> dict[str, Any]:
    machine = {
        "state": "READY",
        "generation": 1,
        "restarts": 0,
        "uptime": 5.0,
        "storage": {"limit": 64 << 20, "resident": 20 << 20},
        "records": records,
        "cause": None,
    }
    shop = machine | {"name": "SHOP", "pid": 6, "cpu_s": 0.5}
    web = machine | {"name": "WEB", "pid": pid, "cpu_s": cpu}
    ends = {"from": meter(sent=sent, outstanding=3, bytes_sent=sent * 100), "to": None}
    edge = {"from": "WEB", "name": "app", "to": "SHOP", "paths": 1, "limit": 64, "meters": ends}
    return {"system": "TEST", "state": "READY", "time": time, "seq": 1, "machines": [web, shop], "edges": [edge]}


def test_rates_are_differences() -> None:
    found = rates(sample(10.0, cpu=1.0, sent=100), sample(12.0, cpu=2.0, sent=300, records=10))
    web, shop = found["machines"]
    assert (web["cpu"], web["messages"], web["records"], web["outstanding"], web["waiting"]) == (0.5, 100.0, 5.0, 3, 0)
    assert (shop["cpu"], shop["messages"], shop["outstanding"], shop["waiting"]) == (0.0, 100.0, 0, 3)
    assert (found["edges"][0]["forth"], found["edges"][0]["bytes_forth"], found["seconds"]) == (100.0, 10_000.0, 2.0)


def test_counters_that_begin_anew_are_not_negative() -> None:
    """With a new process of the machine; and one that does not tell has no rates."""
    found = rates(sample(10.0, cpu=9.0, sent=1000), sample(11.0, pid=7, cpu=0.25, sent=40))
    assert (found["machines"][0]["cpu"], found["edges"][0]["forth"]) == (0.25, 40.0)
    silent = sample(11.0)
    silent["edges"][0]["meters"]["from"] = None
    assert rates(sample(10.0), silent)["edges"][0]["forth"] is None
    other = silent["edges"][0]["meters"] | {"to": meter(received=20)}
    silent["edges"][0]["meters"] = other
    before = sample(10.0)
    before["edges"][0]["meters"]["to"] = meter(received=5)
    assert rates(before, silent)["edges"][0]["forth"] == 15.0
    assert rates({**before, "edges": [], "machines": []}, silent)["edges"][0]["forth"] == 0.0


def test_top_is_a_table() -> None:
    found = rates(sample(10.0, sent=0), sample(11.0, cpu=1.95, sent=1200, records=3))
    assert top.machine_lines(found, paint=PLAIN) == [
        "NAME  STATE  CPU%  RESIDENT  PAGED  LIMIT  PAGE/S  MSG/S  OUT  WAITING  LOG/S  GEN  UPTIME",
        "WEB   READY  95.0       20M      -    64M       -   1200    3        0      3    1      5s",
        "SHOP  READY   0.0       20M      -    64M       -   1200    0        3      3    1      5s",
    ]
    assert top.edge_lines(found, paint=PLAIN)[1].split() == [
        *("WEB", "app", "SHOP", "1", "1200", "0", "117K", "0B", "3", "64"),
    ]
    assert top.head_line(found, PLAIN) == "TEST is READY: 2 of 2 READY, 95% CPU, 40M, 1200 messages/s, 6 records/s"
    assert [each["name"] for each in top.only(found, {"SHOP"})["machines"]] == ["SHOP"]


def test_live_graph_is_a_tree_also_of_circles_and_instances() -> None:
    found = rates(sample(10.0), sample(11.0, sent=12))
    assert picture.picture(found, paint=PLAIN)[1:] == [
        "● WEB  0.0%, 20M",
        "└─ app [12/s, 3 of 64 outstanding] ● SHOP  0.0%, 20M",
    ]
    back = found["edges"][0] | {"from": "SHOP", "to": "WEB", "name": "web", "paths": 0, "outstanding": 0}
    lines = picture.picture({**found, "edges": [*found["edges"], back]}, paint=PLAIN)
    assert lines[3] == "   └─ web [no path] ● WEB  0.0%, 20M (above)"
    shops = [found["machines"][1] | {"name": f"SHOP@{number}", "state": "BROKEN"} for number in (1, 2)]
    lines = picture.picture({**found, "machines": [found["machines"][0], *shops]}, paint=PLAIN)
    assert lines[2:] == [
        "└─ app [12/s, 3 of 64 outstanding] SHOP (2 instances)",
        "     ✗ SHOP@1 BROKEN  0.0%, 20M",
        "     ✗ SHOP@2 BROKEN  0.0%, 20M",
    ]


def test_event_is_a_line() -> None:
    event = {"time": 1e9, "machine": "SHOP", "generation": 2, "state": "ABEND", "previous": "READY", "cause": "a\nb\nc"}
    line = events.EventFormat(PLAIN).line(event)
    assert line.split()[3:] == ["SHOP", "#2", "READY", "->", "ABEND", "a", "…", "c"]
    line = events.EventFormat(PLAIN).line({"state": "READY", "machine": None, "time": None})
    assert line.endswith("(system)         READY")
    assert harmless([events.EventFormat(PLAIN).line(dict.fromkeys(event, HOSTILE))])
