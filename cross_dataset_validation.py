"""Tests a trained model on another database, or annotates recordings that have no labels.

Reads   {source}_{model}_strips_model.pth between beats and 12-lead records, else
        {source}_{model}_model.pth; the .npy files of both databases
Writes  {source}_to_{target}_{model}_cross.json   every table that is printed
        {source}_to_{target}_{model}_cross.csv    truth, score and call of every strip or beat
        for recordings without labels: _beats.csv, _hours.csv, _annotations/, pictures of the
        first ones; with ptbxl_{model}_strips_model.pth also the time in atrial fibrillation
Takes   a minute on two cores; a day of one lead half a minute.

MIT-BIH and PTB-XL meet in strips of 10 s: the PTB-XL records, and pieces of the MIT-BIH records.
A beat model scores a strip by its beats, a PTB-XL model by its crops, each by its outputs for the
SCP statements. Strips of the source have the leads that the target has, and one detector finds the
beats of both. Between two databases of annotated beats, each beat is scored in its whole record.
No label of the target sets a threshold.
"""

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.ndimage import median_filter
from scipy.special import expit
from tqdm import tqdm

from model_evaluation import (
    Predictions,
    called_beats,
    class_metrics,
    make_tables,
    predictions_table,
    print_tables,
    resample_patients,
    save_figure,
    score_rows,
    summarise,
    summarise_metrics,
    summary_tables,
    to_json,
    write_annotations,
)
from model_training import (
    call_classes,
    choose_sides,
    load_checkpoint,
    log_odds,
    pick_leads,
    predict_rows,
    probabilities,
    read_checkpoint,
    split_rows,
    warning_of,
)
from preprocess_mitbih import (
    check_choice,
    detect_beats,
    lead_columns,
    lead_note,
    load_dataset,
    new_files,
    record_voltage,
)

# data and model
PRETRAINED_DATASET = "mitbih"   # source: "mitbih" or "ptbxl"
TEST_DATASET = "ptbxl"          # target: "ptbxl", "mitbih", or NAME of another database
MODEL = "cnn"                   # "cnn", "lstm" or "mlp"

# One name of MIT-BIH, or of the challenges' headers -> the statements of PTB-XL that it means.
MERGED_STATEMENTS = {
    "AFIB": "AFIB AFLT", "SVTAC": "SVTAC PSVT", "TAB_": "NDT NT_ TAB_ LOWT", "LVH": "LVH VCLVH",
}
SCORED_BY_MAXIMUM = ["PVC", "PAC"]   # a single beat shows them; other scores are means
ABNORMAL = "abnormal (shared labels)"   # any of SHARED_STATEMENTS
# without SBRAD, because PTB-XL's NORM includes it
SHARED_STATEMENTS = "PVC PAC CLBBB CRBBB PACE AFIB SVTAC BIGU TRIGU 2AVB WPW".split()
MIN_PATIENTS = 5          # with a positive strip; fewer have no interval

# recordings without a reference
PICTURES = 20             # of the first recordings
AF_LOG_ODDS = -1.0        # least score of atrial fibrillation; chosen on DS1


# ---- Strips of both databases ----

def mitbih_strips(data, records, leads):
    """Dataset of beats, record names, leads -> strips of 10 s with a beat, labelled by their beats.

    signals (n, leads, samples) float32 mV; peaks: n arrays; truth: table of questions, NaN if a
    strip has no answer; place: table of record, sample, patient.
    """
    header = data.header
    length = 10 * data.rate
    of_record = pd.DataFrame(header.records)
    beats = pd.DataFrame(data.metadata["statements"] >= 0, columns=header.statement_names)
    # a detected beat without an annotated one is taken as normal
    beats["normal"] = beats["NORM"] | (data.metadata["symbol"] == "")
    beats["number"] = data.metadata["record"]
    beats["peak"] = data.metadata["sample"] % length
    beats["start"] = data.metadata["sample"] - beats["peak"]
    complete = beats["start"] + length <= of_record["samples"].to_numpy()[beats["number"]]
    strips = beats[complete & np.isin(data.record, records)].groupby(["number", "start"])
    shares = strips.mean().reset_index()
    signals = [record_voltage(data, number)[start:start + length].T
               for number, start in zip(shares["number"], shares["start"])]
    truth = (shares[header.statement_names] > 0).astype(float)
    truth = with_abnormal(truth, shares["normal"] == 1)
    # nothing is early against mostly premature beats
    truth["PAC"] = truth["PAC"].where(shares["PAC"] <= 0.5)
    place = of_record[["name", "patient"]].iloc[shares["number"]].reset_index(drop=True)
    return make_strips(
        data, leads, np.reshape(signals, (-1, len(data.leads), length)),
        truth=truth,
        place=place.rename(columns={"name": "record"}).assign(sample=shares["start"]),
        peaks=[*strips["peak"].apply(np.array)] if header.r_peaks == "detected" else None)


def ptbxl_strips(data, folds, leads):
    """12-lead database, folds, leads -> its pieces of 10 s, labelled by their statements."""
    header = data.header
    rows = np.flatnonzero(np.isin(data.metadata["fold"], folds))
    superclasses = data.metadata["superclasses"][rows] == 1
    statements = pd.DataFrame(data.metadata["statements"][rows], columns=header.statement_names)
    truth = (statements >= 0).astype(float).where(statements > -2)   # -2: unknown
    merge_statements(truth)
    only_normal = superclasses[:, 0] & (superclasses.sum(axis=1) == 1)   # NORM is the first
    place = {"record": data.record[rows], "sample": 0, "patient": data.patient[rows]}
    return make_strips(
        data, leads, data.signals[rows],
        truth=with_abnormal(truth, only_normal),
        place=pd.DataFrame(place))


def make_strips(data, leads, signals, truth, place, peaks=None):
    """Dataset, leads to keep, (n, leads of the dataset, samples) mV, two tables -> strips.

    So both databases have the same leads, and beats found by the same detector in the first one.
    """
    signals = pick_leads(signals, data.leads, leads)
    if peaks is None:
        peaks = [detect_beats(signal[signal.any(axis=1)][:1], data.rate) for signal in signals]
    return SimpleNamespace(
        kind="records", signals=signals, rate=data.rate, leads=leads, truth=truth, place=place,
        peaks=peaks, note=" ".join(leads) + lead_note(data, leads, set(place["record"])))


def merge_statements(table):
    """Table with one column per statement: MERGED_STATEMENTS get the largest of their values.

    An unknown one (NaN) stays unknown unless one of the others is 1.
    """
    for name in table.columns.intersection(MERGED_STATEMENTS):
        largest = table.filter(MERGED_STATEMENTS[name].split()).max(axis=1)
        table[name] = largest.where(table[name].notna() | (largest == 1))


def with_abnormal(truth, normal):
    """Table of statements, mask of the normal strips -> the questions.

    ABNORMAL has no answer for strips that are abnormal by what one database alone labels, such as
    infarction.
    """
    abnormal = (truth.filter(SHARED_STATEMENTS) == 1).any(axis=1)
    truth = truth.drop(columns="NORM", errors="ignore")
    truth.insert(0, ABNORMAL, abnormal.astype(float).where(abnormal | normal))
    return truth


# ---- Score ----

class Result(NamedTuple):
    """What a model says of the strips of one side, source or target."""
    truth: pd.DataFrame    # one column per question: 0, 1 or NaN
    scores: pd.DataFrame   # the same columns: log odds
    place: pd.DataFrame    # record, sample, patient
    note: str              # leads, sampling rate, beats
    called: pd.DataFrame = None   # the same columns: scores above the source's threshold


def score_strips(checkpoint, strips):
    """Checkpoint, strips -> Result: of a beat model, of those with a beat.

    The score of a record is the maximum of its pieces.
    """
    recipe = checkpoint.recipe
    count = len(strips.truth)
    if not count:
        raise SystemExit("there is no piece of 10 s to score: preprocess the complete database")
    logits, numbers = predict_rows(checkpoint, strips, np.arange(count))
    statements = checkpoint.header.statement_names   # the last outputs
    logits = pd.DataFrame(logits.transpose(0, 1).flatten(0, 1)[:, -len(statements):],
                          columns=statements)
    scores = answers(logits.groupby(np.repeat(numbers, len(logits) // len(numbers))))
    scores = scores[scores.columns.intersection(strips.truth.columns, sort=False)]
    truth = strips.truth.loc[scores.index, scores.columns]
    place = strips.place.loc[scores.index]
    pieces = [place["record"], place["sample"]]
    return Result(
        truth=truth.groupby(pieces, sort=False).max().reset_index(drop=True),
        scores=scores.groupby(pieces, sort=False).max().reset_index(drop=True),
        place=place.drop_duplicates(["record", "sample"], ignore_index=True),
        note=f"{strips.note}; {strips.rate} to {recipe.rate} Hz; "
             f"{len(scores):,} of {count:,} pieces of 10 s scored")


def shared_leads(checkpoint, target):
    """Checkpoint, target -> the model's leads that the target has."""
    wanted = checkpoint.recipe.leads
    return [wanted[index] for index in lead_columns(target.leads, wanted) or [0]]


def score_side(checkpoint, data, side, leads):
    """Checkpoint, dataset, its records (beats) or folds (records), leads -> Result."""
    cut_strips = {"beats": mitbih_strips, "records": ptbxl_strips}[data.kind]
    return score_strips(checkpoint, cut_strips(data, side, leads))


def answers(logits):
    """Logits of the statements, grouped by strip -> table of a strip's scores (log odds)."""
    scores = logits.mean()
    scores[SCORED_BY_MAXIMUM] = logits[SCORED_BY_MAXIMUM].max()
    merge_statements(scores)
    none = expit(-scores.filter(SHARED_STATEMENTS)).prod(axis=1)
    scores.insert(0, ABNORMAL, -log_odds(none))
    return scores


# ---- Metrics ----

def choose_thresholds(validation, names):
    """Result of strips of the source, names of questions -> their thresholds.

    The threshold gives a specificity of 0.9. Negatives with another abnormality weigh as much as
    the rest, because the ratio differs between databases. If MIN_PATIENTS or more have the finding
    and the sensitivity is below 0.9, the threshold is lowered until it is 0.9.
    """
    thresholds = {}
    for name in names:
        scores = validation.scores[name]
        positive = validation.truth[name] == 1
        negative = validation.truth[name] == 0
        if not negative.any():
            raise SystemExit(f"no strip of the source is without {name}: preprocess all records")
        abnormal = validation.truth.loc[negative, ABNORMAL] == 1
        weights = 1 / abnormal.map(abnormal.value_counts())
        thresholds[name] = np.quantile(
            scores[negative], 0.9, weights=weights, method="inverted_cdf")
        if validation.place.loc[positive, "patient"].nunique() >= MIN_PATIENTS:
            thresholds[name] = min(thresholds[name], np.quantile(scores[positive], 0.1))
    return pd.Series(thresholds)


def cross_tables(results):
    """Dict of side -> Result -> dict of heading -> table, one row per question."""
    tables = {}
    for side, result in results.items():
        metrics_of = partial(class_metrics, result.truth, result.called, result.scores)
        summary = summarise(resample_patients(result.place["patient"], metrics_of))
        patients = (result.truth == 1).groupby(result.place["patient"]).any().sum()
        values, *limits = summary_tables(side, summary).items()
        heading, table = values
        table.insert(0, "strips", result.truth.count())
        table.insert(2, "patients", patients)
        tables[heading] = table
        tables |= {heading: table[patients >= MIN_PATIENTS] for heading, table in limits}
    return tables


def scores_table(results):
    """Dict of side -> Result -> table, one row per strip: place, truth, score, call."""
    return pd.concat([
        result.place.assign(side=side).join([
            result.truth.add_suffix(" truth"), result.scores.add_suffix(" score"),
            result.called.add_suffix(" called")])
        for side, result in results.items()])


# ---- Beats of another database ----

def predict_beats(checkpoint, data):
    """Checkpoint, dataset of beats -> Predictions for all of its beats."""
    recipe = checkpoint.recipe
    form = data.rate, data.signals.shape[2], data.header.symbols
    known = recipe.rate, recipe.segment, checkpoint.header.symbols
    if form != known:
        raise SystemExit(f"beats of {data.name} are {form}, the model's {known}: preprocess both "
                         "with the same SAMPLING_RATE, SEGMENT and CLASSES")
    logits, rows = predict_rows(checkpoint, data, np.arange(len(data.labels)))
    return Predictions(checkpoint, data, logits.mean(dim=0), rows)


def write_report(report, rows, name):
    """Dict with title and tables, table of strips or beats -> JSON and CSV; prints the tables."""
    with new_files(f"{name}_cross.json", f"{name}_cross.csv") as paths:
        paths[0].write_text(to_json(report))
        rows.to_csv(paths[1], index=False, float_format="%.9g")
    print_tables(report["tables"])
    print(f"{report['title']}. Wrote {name}_cross.json, .csv")


def compare_beats(predictions, source, report, name):
    """Reports the tables of model_evaluation.py for the beats of another database."""
    scored = score_rows(predictions)
    report["tables"] = make_tables(scored, summarise_metrics(scored))
    report["title"] += lead_note(scored.data, scored.recipe.leads, {*scored.data.record})
    train = split_rows(source, scored.recipe)["train"]
    shared = sorted({*source.patient[train]} & {*scored.data.patient})
    if shared:   # other databases reuse MIT-BIH's record names (118e06)
        report["title"] += f". TRAINED ON ITS PATIENTS {' '.join(shared)}"
    write_report(report, predictions_table(scored), name)


# ---- Recordings without a reference ----

def call_beats(predictions):
    """Predictions for beats -> table, a row per beat: place, symbol, time, score of each class."""
    checkpoint, data, logits, rows = predictions
    scores = probabilities(logits, checkpoint.recipe)
    called = call_classes(data, rows, scores, checkpoint.recipe)
    beats = called_beats(data, rows, called)
    beats["time"] = data.metadata["sample"][beats.index] / data.rate   # s
    return beats.join(pd.DataFrame(scores, columns=checkpoint.header.class_names))


def rr_before(beats, record):
    """Beats of a record, its entry in the header -> RR interval before each beat in s.

    NaN over unreadable signal.
    """
    starts = [start for start, stop in record["unreadable"]]
    return beats["time"].groupby(np.searchsorted(starts, beats["time"])).diff()


def call_rhythm(beats, data, model):
    """Beats of a record with RR, dataset, checkpoint of PTB-XL or None -> rhythm of each strip.

    The index is the start of the strip of 10 s, in s. In atrial fibrillation, the model's score is
    high and the RR intervals between N beats are irregular, in most of three strips.
    """
    start = beats["time"].astype(int) // 10 * 10
    heart_rate = 60 / beats["RR"].groupby(start).median()
    rhythm = pd.Series("N", heart_rate.index)
    rhythm[heart_rate < 60] = "SBRAD"
    rhythm[heart_rate > 100] = "STACH"
    if model:
        strips = mitbih_strips(data, beats["record"].unique(), shared_leads(model, data))
        if len(strips.truth):
            result = score_strips(model, strips)
            score = result.scores["AFIB"].set_axis(result.place["sample"] // data.rate)
            ectopic = beats["symbol"] != "N"
            normal = beats["RR"].mask(ectopic | ectopic.shift(fill_value=False))
            change = (normal.diff().abs() / normal).groupby(start).median()
            is_af = (score.reindex(rhythm.index) > AF_LOG_ODDS) & (change > 0.04)
            rhythm[median_filter(is_af, 3)] = "AFIB"
    return rhythm


def hourly_table(beats, rhythm, record, rate):
    """Beats of a record with RR, call_rhythm, entry in the header, sampling rate -> table by hour.

    A run has three beats or more.
    """
    run = (beats["symbol"] != beats["symbol"].shift()).cumsum()
    begins_run = (run.map(run.value_counts()) > 2) & ~run.duplicated()
    table = pd.DataFrame({"beats": 1, "pauses": beats["RR"] > 2})
    for symbol in "SV":
        ectopic = beats["symbol"] == symbol
        table[f"{symbol} beats"] = ectopic
        table[f"{symbol} runs"] = ectopic & begins_run
    hour = beats["time"].astype(int) // 3600
    rhythms = ["AFIB", "SBRAD", "STACH"]
    of_strips = pd.DataFrame({f"{name} min": rhythm == name for name in rhythms}) / 6
    readable = pd.Series(1, range(-(-record["samples"] // rate)))   # s
    for start, stop in record["unreadable"]:
        readable[start:stop] = 0
    minutes = readable.groupby(readable.index // 3600).sum() / 60
    hours = pd.DataFrame({"minutes analysed": minutes}).join([
        table.groupby(hour).sum(), of_strips.groupby(rhythm.index // 3600).sum()])
    return hours.fillna(0).assign(heart_rate=60 / beats["RR"].groupby(hour).mean())


def marks_of(record, rhythm):
    """Record of the header, call_rhythm -> annotations of unreadable signal (~), of rhythm (+)."""
    marks = []
    for start, stop in record["unreadable"]:
        marks += [(start, "~", -1, ""), (stop, "~", 0, "")]   # -1: unreadable, 0: clean
    note = rhythm.map({"AFIB": "(AFIB"}).fillna("(N")
    for start, text in note[note != note.shift()].items():
        marks.append((start, "+", 0, text))
    marks = pd.DataFrame(marks, columns=["time", "symbol", "subtype", "aux_note"])
    sample = (marks["time"] * record["rate"]).astype(int)
    return marks.assign(record=record["name"], sample=sample)


def plot_recording(record, beats, rhythm, title, path):
    """Entry in the header, its beats with RR, call_rhythm -> PNG of the RR intervals by class.

    Unreadable signal is grey, atrial fibrillation red.
    """
    figure = Figure(figsize=(12, 4), layout="constrained")
    axis = figure.subplots()
    for start, stop in record["unreadable"]:
        axis.axvspan(start / 60, stop / 60, color="0.85")
    for start in rhythm.index[rhythm == "AFIB"]:
        axis.axvspan(start / 60, (start + 10) / 60, ymax=0.05, color="tab:red")
    for symbol, of_class in beats.groupby("symbol"):
        marker = "." if symbol == "N" else f"${symbol}$"
        axis.scatter(of_class["time"] / 60, of_class["RR"].clip(upper=2.5), marker=marker)
    axis.set(xlabel="time (min)", ylabel="RR interval (s)", ylim=(0, 2.5))
    save_figure(figure, f"{title}. Grey: unreadable", path)


def annotate(predictions, name):
    """Writes what the models call in recordings without a reference; nothing is scored."""
    checkpoint, data, *_ = predictions
    path = Path(f"ptbxl_{MODEL}_strips_model.pth")
    model = read_checkpoint("ptbxl", MODEL, strips=True) if path.exists() else None
    calls = call_beats(predictions)
    records = data.header.records
    leads = checkpoint.recipe.leads
    pictures = [f"{name}_{record['name'].replace('/', '_')}.png" for record in records[:PICTURES]]
    tables, hours, marks = [], {}, []
    with new_files(f"{name}_beats.csv", f"{name}_hours.csv", *pictures) as paths:
        for number, record in enumerate(tqdm(records, desc="recordings", disable=None)):
            beats = calls[calls["record"] == record["name"]]
            beats = beats.assign(RR=rr_before(beats, record))
            rhythm = call_rhythm(beats, data, model)
            tables.append(beats)
            hours[record["name"]] = hourly_table(beats, rhythm, record, data.rate)
            marks.append(marks_of(record, rhythm if model else rhythm[:0]))
            if number < len(pictures):
                title = record["name"] + lead_note(data, leads, [record["name"]])
                title += ". Red: atrial fibrillation" if model else ""
                plot_recording(record, beats, rhythm, title, paths[2 + number])
        beats = pd.concat(tables)
        beats.to_csv(paths[0], index=False, float_format="%.4f")
        hours = pd.concat(hours, names=["record", "hour"])
        if not model:
            hours = hours.drop(columns="AFIB min")
        hours.to_csv(paths[1])
    for picture in {*Path().glob(f"{name}_*.png")} - {*map(Path, pictures)}:   # of an earlier run
        picture.unlink()
    marks = pd.concat([*marks, beats]).sort_values(["record", "sample"], kind="stable")
    write_annotations(marks, f"{name}_annotations", checkpoint.model, records)
    note = lead_note(data, leads, {*data.record})
    print_tables({f"calls by hour, the first 48 rows{note}": hours.head(48)})
    if not model:
        print(f"{path} is not in this folder: nothing looked for atrial fibrillation")
    print("No reference (ANNOTATOR = None): nothing was scored. "
          f"Wrote {name}_beats.csv, _hours.csv, _annotations/, {len(pictures)} pictures")


# ---- Main ----

def shared_questions(checkpoint, source, truth):
    """Checkpoint, source, truth of the target -> names of the questions that both can answer."""
    train = split_rows(source, checkpoint.recipe)["train"]
    trained = (source.metadata["statements"][train] >= 0).any(axis=0)
    trained = np.array(source.header.statement_names)[trained]
    names = truth.columns.intersection([ABNORMAL, *trained], sort=False)
    asked = (truth[names] == 1).any()
    if not asked.any():   # there are no labels
        return names
    return names[asked | (names == ABNORMAL)]


def compare(checkpoint, source, target):
    """Checkpoint, both datasets -> dict of side -> Result, of shared questions."""
    sides = checkpoint.recipe.sides
    leads = shared_leads(checkpoint, target)
    test = choose_sides(target, "inter_patient")["test"]
    results = {"cross-domain": score_side(checkpoint, target, test, leads)}
    names = shared_questions(checkpoint, source, results["cross-domain"].truth)
    if sides["test"]:
        home = score_side(checkpoint, source, sides["test"], leads)
        results = {"in-domain": home} | results
    known = sides["validation"]
    if source.kind == "beats":   # five records are too few
        known = known + sides["train"]
    thresholds = choose_thresholds(score_side(checkpoint, source, known, leads), names)
    return {side: result._replace(truth=result.truth[names], scores=result.scores[names],
                                  called=result.scores[names] > thresholds)
            for side, result in results.items()}


def compare_strips(checkpoint, source, target, report, name):
    """Reports how well the model answers the questions on both databases."""
    results = compare(checkpoint, source, target)
    report["notes"] = {side: result.note for side, result in results.items()}
    report["tables"] = {}
    if (results["cross-domain"].truth == 1).any(axis=None):
        report["tables"] = cross_tables(results)
    else:
        report["title"] += ". No positive labels: nothing was scored"
    print(*(f"{side}: {note}" for side, note in report["notes"].items()), sep="\n")
    write_report(report, scores_table(results), name)


def main():
    check_choice("PRETRAINED_DATASET", PRETRAINED_DATASET, ["mitbih", "ptbxl"])
    if PRETRAINED_DATASET == TEST_DATASET:
        raise SystemExit(f"PRETRAINED_DATASET and TEST_DATASET are both {TEST_DATASET!r}: "
                         "model_evaluation.py does that")
    source = load_dataset(PRETRAINED_DATASET)
    target = load_dataset(TEST_DATASET)
    checkpoint = load_checkpoint(source, MODEL, strips=source.kind != target.kind)
    title = f"{MODEL} trained on {source.name}, tested on {target.name}"
    title += warning_of(source.header.simulated or target.header.simulated)
    report = {"title": title, "recipe": vars(checkpoint.recipe), "source": vars(source.header),
              "target": vars(target.header)}
    print(title)
    name = f"{source.name}_to_{target.name}_{MODEL}"
    if target.kind == "records" or (source.kind == "records" and target.header.annotator):
        compare_strips(checkpoint, source, target, report, name)
    elif target.header.annotator:
        compare_beats(predict_beats(checkpoint, target), source, report, name)
    else:
        check_choice("for ANNOTATOR = None, PRETRAINED_DATASET", PRETRAINED_DATASET, ["mitbih"])
        annotate(predict_beats(checkpoint, target), name)


if __name__ == "__main__":
    main()
