import json
import pathlib

from retinue.cp.directory import Directory, Edge, MachineEntry, System, graph, load

GOOD = pathlib.Path(__file__).parents[2] / "topologies" / "good"

# Names that no topology file can have, and that would be commands in every one of the languages.
HOSTILE = Directory(
    pathlib.Path("/srv/shop/shop.toml"),
    System('S"]; \\'),
    (
        MachineEntry('A"]\n; x', "program", "x", uses=(Edge('e"|<b>&\\', "end"), Edge("none", "NOBODY"))),
        MachineEntry("end", "program", "x", network=True, uses=(Edge("\x1b[2J", "end", lazy=True),)),
    ),
)


def test_text_is_a_tree_from_the_machines_that_nobody_uses() -> None:
    assert (
        graph.text(load(GOOD / "diamond.toml"))
        == """\
system DIAMOND: 6 machines
ALONE (network)
TOP
├─ left: LEFT
│  ├─ below: BOTTOM
│  │  └╌ top: TOP (lazy, above)
│  └─ log: LOG (syslog)
│     └╌ top: TOP (lazy, above)
├─ right: RIGHT
│  └─ below: BOTTOM (above)
├─ far: BOTTOM (above)
└─ operator: *CP
"""
    )


def test_text_has_the_links_of_a_machine_under_it() -> None:
    assert (
        graph.text(load(GOOD / "every-key.toml"))
        == """\
system BANK2: 6 machines
DOOR (network)
└─ window: WINDOW (3 instances)
   ├─ desk: DESK
   │  ├╌ again: WINDOW (3 instances, lazy, above)
   │  └─ vault: VAULT
   │     ├═ link ledger: DESK.ledger (rw)
   │     └─ audit: AUDIT (on-demand)
   │        └═ link books: DESK.ledger (ro)
   ├─ log: *LOG
   └─ cp: *CP
RECORDS (syslog)
"""
    )


def test_text_cuts_a_circle_open_at_its_lazy_edge() -> None:
    assert graph.text(load(GOOD / "pair.toml")) == (
        "system PAIR: 2 machines\nHEN\n└─ egg: EGG\n   └╌ hen: HEN (lazy, above)\n"
    )


def test_text_holds_no_commands_for_the_terminal_and_ends_on_any_graph() -> None:
    drawn = graph.text(HOSTILE)
    assert "\x1b" not in drawn
    assert len(drawn.splitlines()) == 5
    circle = (Edge("a", "A"), Edge("b", "B"))
    machines = tuple(MachineEntry(name, "program", "x", uses=circle) for name in "AB")
    assert graph.text(Directory(pathlib.Path("/x"), System("X"), machines)).startswith("system X: 2 machines\nA\n")


def test_mermaid_has_a_node_for_every_machine_and_an_arrow_for_every_edge() -> None:
    assert (
        graph.mermaid(load(GOOD / "every-key.toml"))
        == """\
flowchart TD
    m0["DOOR<br/>(network)"]
    m1["WINDOW<br/>(3 instances)"]
    m2["DESK"]
    m3["AUDIT<br/>(on-demand)"]
    m4["VAULT"]
    m5["RECORDS<br/>(syslog)"]
    s0(["*CP"])
    s1(["*LOG"])
    m0 -->|"window"| m1
    m1 -->|"desk"| m2
    m1 -->|"log"| s1
    m1 -->|"cp"| s0
    m2 -.->|"again"| m1
    m2 -->|"vault"| m4
    m4 -->|"audit"| m3
    m3 ==>|"link books: ledger #40;ro#41;"| m2
    m4 ==>|"link ledger: ledger #40;rw#41;"| m2
"""
    )


def test_mermaid_escapes_what_is_not_a_letter() -> None:
    assert (
        graph.mermaid(HOSTILE)
        == """\
flowchart TD
    m0["A#34;#93;#10;#59; x"]
    m1["end<br/>(network)"]
    m0 -->|"e#34;#124;#60;b#62;#38;#92;"| m1
    m1 -.->|"#27;#91;2J"| m1
"""
    )


def test_dot_has_a_node_for_every_machine_and_an_arrow_for_every_edge() -> None:
    assert (
        graph.dot(load(GOOD / "every-key.toml"))
        == """\
digraph "BANK2" {
    node [shape=box];
    "DOOR" [label="DOOR\\n(network)", style=bold];
    "WINDOW" [label="WINDOW\\n(3 instances)", style=bold];
    "DESK" [label="DESK"];
    "AUDIT" [label="AUDIT\\n(on-demand)", style=bold];
    "VAULT" [label="VAULT"];
    "RECORDS" [label="RECORDS\\n(syslog)", style=bold];
    "*CP" [shape=ellipse];
    "*LOG" [shape=ellipse];
    "DOOR" -> "WINDOW" [label="window"];
    "WINDOW" -> "DESK" [label="desk"];
    "WINDOW" -> "*LOG" [label="log"];
    "WINDOW" -> "*CP" [label="cp"];
    "DESK" -> "WINDOW" [label="again", style=dashed];
    "DESK" -> "VAULT" [label="vault"];
    "VAULT" -> "AUDIT" [label="audit"];
    "AUDIT" -> "DESK" [label="link books: ledger (ro)", style=bold, arrowhead=box];
    "VAULT" -> "DESK" [label="link ledger: ledger (rw)", style=bold, arrowhead=box];
}
"""
    )


def test_dot_escapes_quotes_and_backslashes() -> None:
    drawn = graph.dot(HOSTILE)
    assert drawn.startswith('digraph "S\\"]; \\\\" {\n')
    assert '    "A\\"]\\n; x" -> "end" [label="e\\"|<b>&\\\\"];\n' in drawn


def test_as_json_is_plain_and_complete() -> None:
    path = GOOD / "every-key.toml"
    value = graph.as_json(load(path))
    assert json.loads(json.dumps(value)) == value
    assert value["system"] == "BANK2"
    assert value["topology"] == str(path.resolve())
    assert value["syslog"] == "RECORDS"
    assert value["seal"] == "full"
    assert value["start_order"] == [["RECORDS"], ["AUDIT", "VAULT"], ["DESK"], ["WINDOW"], ["DOOR"]]
    assert value["machines"][2] == {
        "name": "DESK",
        "kind": "program",
        "program": "desk",
        "command": [],
        "threads": None,
        "network": False,
        "host_sockets": [],
        "storage": 33_554_432,
        "segments": 268_435_456,
        "share": 100,
        "cpu": None,
        "restart": "never",
        "pause": 10.0,
        "backoff": {"first": 0.1, "factor": 2.0, "longest": 10.0, "jitter": 0.2, "reset": 60.0},
        "restarts": None,
        "essential": False,
        "instances": 1,
        "start": "up",
        "idle": None,
        "watchdog": 60.0,
        "grace": 10.0,
        "replace": "stop-first",
        "reserve": 0,
        "priority": 100,
        "idle_page_out": 120.0,
        "log": {
            "policy": "drop",
            "buffer": 2 * 1024**2,
            "spill": 1024**3,
            "rate": {"most": 600, "within": 60.0},
        },
        "sockets": {},
        "disks": [
            {"name": "ledger", "size": None, "temporary": False, "linked_by": {"AUDIT": "ro", "VAULT": "rw"}},
            {"name": "drafts_2", "size": None, "temporary": False, "linked_by": {}},
        ],
        "secrets": [],
    }
    assert value["machines"][0]["host_sockets"] == ["/dev/log", "@audit"]
    assert (value["machines"][3]["threads"], value["machines"][3]["cpu"]) == (2, 1.5)
    assert value["machines"][4]["command"][:2] == ["./vault.sh", "--at={sockets.door}"]
    assert value["machines"][4]["sockets"] == {"door": "listen", "audit": "connect"}
    assert value["machines"][4]["secrets"] == ["code"]
    assert value["links"] == [
        {"from": "AUDIT", "name": "books", "to": "DESK", "disk": "ledger", "mode": "ro"},
        {"from": "VAULT", "name": "ledger", "to": "DESK", "disk": "ledger", "mode": "rw"},
    ]
    assert value["secret"] == ["password", "card number"]
    assert (value["storage"], value["idle_page_out"]) == (4 * 1024**3, 120.0)
    assert value["paging"] == {"volume": "other.img", "size": 2 * 1024**3}
    records = value["machines"][5]
    assert (records["reserve"], records["priority"], records["idle_page_out"]) == (8 * 1024**2, 200, None)
    window, audit = value["machines"][1], value["machines"][3]
    assert (window["pause"], window["restarts"]) == (0.5, {"most": 5, "within": 120.0})
    assert (window["essential"], window["instances"]) == (True, 3)
    assert (audit["start"], audit["idle"], audit["watchdog"]) == ("on-demand", 300.0, None)
    assert value["groups"] == [
        {
            "name": "FRONT",
            "members": ["WINDOW", "BACK"],
            "strategy": "rest_for_one",
            "restarts": {"most": 0, "within": 3600.0},
        },
        {
            "name": "BACK",
            "members": ["VAULT", "AUDIT"],
            "strategy": "one_for_one",
            "restarts": {"most": 3, "within": 10.0},
        },
    ]
    assert value["edges"][1] == {
        "from": "WINDOW",
        "name": "desk",
        "to": "DESK",
        "limit": 65_535,
        "lazy": False,
        "on_restart": "restart",
        "overflow": "drop-oldest",
    }
    assert len(value["edges"]) == 7
    assert "open-sesame" not in json.dumps(value)
