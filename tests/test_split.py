"""The split of model_training.py: published sides, and every patient on one of them only."""

import numpy as np
import pytest
from harness import changed, train

import model_training as stage

DS1 = ["101", "106", "108", "109", "112", "114", "115", "116", "118", "119", "122", "124",
       "201", "203", "205", "207", "208", "209", "215", "220", "223", "230"]
DS2 = ["100", "103", "105", "111", "113", "117", "121", "123", "200", "202", "210",
       "212", "213", "214", "219", "221", "222", "228", "231", "232", "233", "234"]
VALIDATION = ["114", "124", "203", "220", "223"]


def split(dataset, **constants):
    """-> dataset, dict of side -> rows, dict of side -> sorted records or folds of these rows."""
    with changed(stage, **{"DATASET": dataset} | constants):
        data = stage.load_dataset(dataset)
        settings = stage.RECIPES[dataset] | {"hold_out": True}
        rows = stage.split_rows(data, stage.choose_recipe(data, settings))
    member = data.metadata["fold"] if dataset == "ptbxl" else data.record
    return data, rows, {side: sorted(set(member[part].tolist())) for side, part in rows.items()}


def test_mitbih_split_is_de_chazals_with_validation_patients_out_of_ds1(prepared):
    data, rows, members = split("mitbih")
    assert members["validation"] == VALIDATION and members["test"] == DS2
    assert members["train"] == [record for record in DS1 if record not in VALIDATION]
    used = np.concatenate(list(rows.values()))
    assert sorted(used) == np.flatnonzero(np.isin(data.record, DS1 + DS2)).tolist()


def test_ptbxl_split_is_by_fold(prepared):
    _, _, members = split("ptbxl")
    assert members == {"train": [1, 2, 3, 4, 5, 6, 7, 8], "validation": [9], "test": [10]}


def test_split_all_trains_on_everything_but_the_validation_rows(prepared):
    _, _, members = split("mitbih", SPLIT="all")
    paced = ["102", "104", "107", "217"]
    assert members["validation"] == VALIDATION and members["test"] == []
    assert members["train"] == sorted({*DS1, *DS2, *paced} - {*VALIDATION})
    _, _, members = split("ptbxl", SPLIT="all")
    assert members == {"train": [1, 2, 3, 4, 5, 6, 7, 8, 10], "validation": [9], "test": []}


@pytest.mark.parametrize("dataset, one, other", [
    ("ptbxl", "train", "validation"), ("ptbxl", "train", "test"), ("ptbxl", "validation", "test"),
    ("mitbih", "train", "validation"), ("mitbih", "train", "test")])
def test_a_patient_on_two_sides_stops_the_run(prepared, monkeypatch, dataset, one, other):
    data, rows, _ = split(dataset)
    patient = data.patient[rows[one][0]]
    data.patient[rows[other][0]] = patient
    monkeypatch.setattr(stage, "load_dataset", lambda name: data)
    with pytest.raises(SystemExit, match=f"patients {patient} are on two sides of the split"):
        train(dataset)
    assert not list(prepared.glob("*.pth"))


def test_201_and_202_are_the_one_exception_and_can_be_left_out(prepared, monkeypatch):
    data, rows, _ = split("mitbih")
    sentence = stage.check_patients(data, rows)
    assert "201 (DS1) and 202 (DS2) are one patient" in sentence
    for record in data.header.records:
        record["subset"] = "left out" if record["name"] == "202" else record["subset"]
    monkeypatch.setattr(stage, "load_dataset", lambda name: data)
    data, rows, members = split("mitbih")
    assert members["test"] == [record for record in DS2 if record != "202"]
    assert stage.check_patients(data, rows) == "no patient is on two sides"


def test_patient_201_of_ptbxl_is_no_exception(prepared):
    data, rows, _ = split("ptbxl")
    data.patient = np.array(data.patient, "U9")
    data.patient[[rows["train"][0], rows["test"][0]]] = "201"
    with pytest.raises(SystemExit, match="patients 201 are on two sides of the split"):
        stage.check_patients(data, rows)


def test_rows_with_any_statement_are_used(prepared, monkeypatch):
    data, _, _ = split("ptbxl")
    data.metadata = np.array(data.metadata)
    data.metadata["statements"][7] = -1
    monkeypatch.setattr(stage, "load_dataset", lambda name: data)
    _, rows, _ = split("ptbxl")
    used = np.concatenate(list(rows.values()))
    assert sorted(used) == np.delete(np.arange(300), 7).tolist()


def test_201_may_not_validate_what_trains_on_202(prepared):
    data, rows, _ = split("mitbih", SPLIT="all", VALIDATION_RECORDS=["201"])
    with pytest.raises(SystemExit, match="patients 201 are on two sides"):
        stage.check_patients(data, rows)


@pytest.mark.parametrize("names, found", [
    ([], []), ("114, 124", ["114", "124"]), (np.array(["114", "124"]), ["114", "124"]),
    ((114, "124"), ["114", "124"]), (101, ["101"]), (["124", 201, "999"], ["124", "201"])])
def test_records_are_named_by_lists_tuples_numbers_or_strings(prepared, names, found):
    """None has to validate, and one may be missing."""
    _, _, members = split("mitbih", VALIDATION_RECORDS=names)
    assert members["validation"] == found
    assert members["train"] == [record for record in DS1 if record not in found]


@pytest.mark.parametrize("names, other", [
    (["114", "202"], "202"), (102, "102"), ("114 234", "234")])
@pytest.mark.parametrize("hold_out", [True, False])
def test_validation_records_of_another_side_are_refused(prepared, names, other, hold_out):
    with pytest.raises(SystemExit, match=f"^VALIDATION_RECORDS: {other} are not of DS1$"):
        train(settings={"hold_out": hold_out}, VALIDATION_RECORDS=names)
    assert not list(prepared.glob("*.pth"))
    if hold_out:   # a split that trains on all sides
        _, _, members = split("mitbih", SPLIT="all", VALIDATION_RECORDS=names)
        assert other in members["validation"] and other not in members["train"]
