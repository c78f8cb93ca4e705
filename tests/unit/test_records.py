"""What is recorded about a stack's objects: the database and the engine's memory agree after every report."""

import random
from typing import Any

import pytest

from deployments.engine.memory_store import MemoryStore
from deployments.engine.records import Records
from deployments.engine.spec import Progress
from deployments.models import Deployment

from ..users import People

TYPES = ("project", "application", "deploy")


def report(state: str, type: str, **data: Any) -> Progress:
    return Progress("receipt", "deploying", "…", data={"state": state, "kind": type, **data})


@pytest.fixture
def deployment(db: None) -> Deployment:
    people = People()
    people.deploy(people.owner, "shop")
    claimed = Deployment.claim("worker", excluding=[])
    assert claimed is not None
    return claimed


def random_report(choose: random.Random) -> Progress:
    type, mark, id = choose.choice(TYPES), choose.choice("ab"), choose.choice("123")
    reports = (
        report("intended", type, mark=mark),
        report("made", type, mark=mark, id=id),
        report("removing", type, id=id),
        report("left", type, id=choose.choice((id, None)), why="it stays"),
        report("gone", type, id=choose.choice((id, None))),
    )
    return choose.choices(reports, weights=(3, 3, 2, 1, 1))[0]


@pytest.mark.parametrize("seed", range(5))
def test_the_database_and_the_memory_hold_the_same_after_every_report(deployment: Deployment, seed: int) -> None:
    choose, store = random.Random(seed), MemoryStore()
    sizes = set()
    for number in range(60):
        progress = random_report(choose)
        deployment.record(progress)
        store.apply(progress)
        assert sorted(deployment.records()) == sorted(store.records), (number, progress)
        sizes.add(len(store.records))
    assert len(sizes) > 3


def test_an_id_that_is_known_only_at_the_removal_is_filled_in(deployment: Deployment) -> None:
    """The answer with the id was lost; the object was found, and deleted, by its mark."""
    deployment.record(report("intended", "project", mark="m"))
    assert deployment.records().awaits("project")
    deployment.record(report("removing", "project", id="p"))
    assert list(deployment.records()) == [("project", "m", "p")]
    assert not deployment.records().awaits("project")
    deployment.record(report("gone", "project", id="another"))
    assert deployment.records().has("p"), "another object of the type is gone"
    deployment.record(report("gone", "project", id="p"))
    assert len(deployment.records()) == 0
    [resource] = deployment.stack.external_resources.all()
    assert (resource.external_id, resource.state) == ("p", "gone")


def test_records_tell_what_is_recorded() -> None:
    records = Records([("project", "m", "p"), ("deploy", "t/1", ""), ("deploy", "t/2", "d")])
    assert records.marks("deploy") == ["t/1", "t/2"]
    assert [records.awaits(type) for type in ("project", "deploy", "domain")] == [False, True, False]
    assert records.has_any(["x", "d"])
    assert not records.has_any(["x", "m"])
    assert not records.has("")
    records.forget("deploy", "t/1")
    assert not records.awaits("deploy")
    assert len(Records(records)) == 2
