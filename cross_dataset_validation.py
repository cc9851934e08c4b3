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
Nothing of the target chooses anything.
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
    area_under_curve,
    called_beats,
    draw_ecg,
    make_tables,
    predictions_table,
    print_tables,
    ratio,
    resample_patients,
    save_figure,
    score_rows,
    summarise,
    summarise_metrics,
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
    load_dataset,
    new_files,
    record_voltage,
)

# data and model
PRETRAINED_DATASET = "mitbih"   # source: "mitbih" or "ptbxl"
TEST_DATASET = "ptbxl"          # target: "ptbxl", "mitbih", or NAME of another database
MODEL = "cnn"                   # "cnn", "lstm" or "mlp"

MERGED_STATEMENTS = {"AFIB": "AFLT", "SVTAC": "PSVT"}   # MIT-BIH's AFIB is either one in PTB-XL
SCORED_BY_MAXIMUM = ["PVC", "PAC"]   # a single beat shows them; other scores are means
ABNORMAL = "abnormal (shared labels)"   # any of SHARED_STATEMENTS
SHARED_STATEMENTS = "PVC PAC CLBBB CRBBB PACE AFIB SVTAC SBRAD BIGU TRIGU 2AVB WPW".split()
EARLY_PAC = "PAC against a slower rhythm"   # strips with mostly premature beats have no answer
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
    truth[EARLY_PAC] = truth["PAC"].where(shares["PAC"] <= 0.5)
    place = of_record[["name", "patient"]].iloc[shares["number"]].reset_index(drop=True)
    return make_strips(
        data, leads, np.reshape(signals, (-1, len(data.leads), length)),
        truth=with_abnormal(truth, shares["normal"] == 1),
        place=place.rename(columns={"name": "record"}).assign(sample=shares["start"]),
        peaks=[*strips["peak"].apply(np.array)] if header.r_peaks == "detected" else None)


def ptbxl_strips(data, folds, leads):
    """12-lead database, folds, leads -> its pieces of 10 s, labelled by their statements."""
    header = data.header
    rows = np.flatnonzero(np.isin(data.metadata["fold"], folds))
    superclasses = data.metadata["superclasses"][rows] == 1
    truth = pd.DataFrame(data.metadata["statements"][rows] >= 0, columns=header.statement_names,
                         dtype=float)
    truth[EARLY_PAC] = truth["PAC"]
    merge_statements(truth)
    only_normal = superclasses[:, 0] & (superclasses.sum(axis=1) == 1)   # NORM is the first
    place = {"record": data.record[rows], "sample": 0, "patient": data.patient[rows]}
    return make_strips(
        data, leads, data.signals[rows],
        truth=with_abnormal(truth, only_normal),
        place=pd.DataFrame(place))


def lead_note(available, wanted):
    """Names of the leads of data, of those of a model -> sentence: what the model sees."""
    columns = lead_columns(available, wanted) or {0: 0}
    pairs = [f"{available[column]} as {wanted[index]}" for index, column in columns.items()]
    return f"leads: {', '.join(pairs)}"


def make_strips(data, leads, signals, truth, place, peaks=None):
    """Dataset, leads to keep, (n, leads of the dataset, samples) mV, two tables -> strips.

    So both databases have the same leads, and beats found by the same detector in the first one.
    """
    signals = pick_leads(signals, data.leads, leads)
    if peaks is None:
        peaks = [detect_beats(signal[signal.any(axis=1)][:1], data.rate) for signal in signals]
    return SimpleNamespace(
        kind="records", signals=signals, rate=data.rate, leads=leads, truth=truth, place=place,
        peaks=peaks, note=lead_note(data.leads, leads))


def merge_statements(table):
    """Table with one column per statement: MERGED_STATEMENTS get the larger of both values."""
    for name, other in MERGED_STATEMENTS.items():
        table[name] = table.filter([name, other]).max(axis=1)


def with_abnormal(truth, normal):
    """Table of statements, mask of the normal strips -> the questions.

    ABNORMAL has no answer for strips that are abnormal by what one database alone labels, such as
    infarction.
    """
    abnormal = truth.filter(SHARED_STATEMENTS).any(axis=1)
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


def score_strips(checkpoint, strips):
    """Strips -> Result of those with a beat. A record in pieces has its largest score."""
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
        note=f"{strips.note}; {strips.rate} to {recipe.rate} Hz; beats found in "
             f"{len(scores):,} of {count:,} pieces of 10 s")


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
    scores[EARLY_PAC] = scores["PAC"]
    return scores


# ---- Metrics ----

def choose_thresholds(validation, names):
    """Result of strips of the source, names of questions -> their thresholds.

    The specificity is 0.9 there. Strips that are abnormal otherwise weigh as much as the others,
    because another database has another share of them. If that leaves a sensitivity below 0.9, on
    MIN_PATIENTS or more, the threshold is lowered until it is 0.9.
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


def strip_metrics(result, called, weights):
    """Result, table of calls, (b, n) weights -> dict of (question, metric) -> (b,) values."""
    table = {}
    for name, truth in result.truth.items():
        known = weights * truth.notna().to_numpy()
        positive = (truth == 1).to_numpy()
        of_question = called[name].to_numpy()
        sensitivity = ratio(known @ (positive & of_question), known @ positive)
        specificity = ratio(known @ ~(positive | of_question), known @ ~positive)
        table |= {
            (name, "AUC"): area_under_curve(positive, result.scores[name].to_numpy(), known),
            (name, "sensitivity"): sensitivity,
            (name, "specificity"): specificity,
            (name, "balanced accuracy"): (sensitivity + specificity) / 2,
        }
    return table


def cross_tables(results, thresholds):
    """Dict of side -> Result, thresholds -> dict of heading -> table, one row per question."""
    tables = {}
    for side, result in results.items():
        seed = int(side == "cross-domain")   # independent resamples
        metrics_of = partial(strip_metrics, result, result.scores > thresholds)
        summary = summarise(resample_patients(result.place["patient"], metrics_of, seed))
        positive = result.truth == 1
        patients = positive.groupby(result.place["patient"]).any().sum()
        counts = {"strips": result.truth.count(), "positive": positive.sum(), "patients": patients}
        tables[side] = pd.DataFrame(counts).join(summary["value"].unstack(sort=False))
        for limit, heading in (("low", "from"), ("high", "to")):
            table = summary[limit].unstack(sort=False)
            tables[f"{side}, 95% interval {heading}"] = table[patients >= MIN_PATIENTS]
    return tables


def scores_table(results, thresholds):
    """Dict of side -> Result, thresholds -> table, one row per strip: place, truth, score, call."""
    tables = []
    for side, result in results.items():
        called = (result.scores > thresholds).add_suffix(" called")
        tables.append(result.place.assign(side=side).join([
            result.truth.add_suffix(" truth"), result.scores.add_suffix(" score"), called]))
    return pd.concat(tables)


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
    print(f"{lead_note(data.leads, recipe.leads)}; beats: {data.header.r_peaks}")
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


def readable_seconds(record, rate):
    """Record of the header, its sampling rate -> (s,) mask of the seconds that can be read."""
    readable = np.ones(-(-record["samples"] // rate), bool)
    for start, stop in record["unreadable"]:
        readable[start:stop] = False
    return readable


def rr_before(beats, readable):
    """Beats of a record, readable_seconds -> RR interval before each beat in s.

    NaN if a second of it cannot be read.
    """
    unreadable = np.cumsum(~readable)[beats["time"].astype(int)]   # seconds before the beat
    return beats["time"].groupby(unreadable).diff()


def call_rhythm(beats, data, model):
    """Beats of a record with RR, dataset, checkpoint of PTB-XL or None -> rhythm of each strip.

    The index is the start of the strip of 10 s, in s. In atrial fibrillation, the model's score is
    high and the RR intervals between N beats are irregular, in most of three strips.
    """
    start = beats["time"].astype(int) // 10 * 10
    rate = 60 / beats["RR"].groupby(start).median()
    rhythm = pd.Series("N", rate.index)
    rhythm[rate < 60] = "SBRAD"
    rhythm[rate > 100] = "STACH"
    if model:
        strips = mitbih_strips(data, beats["record"].unique(), shared_leads(model, data))
        if len(strips.truth):
            result = score_strips(model, strips)
            score = result.scores["AFIB"].set_axis(result.place["sample"] // data.rate)
            ectopic = beats["symbol"] != "N"
            normal = beats["RR"].mask(ectopic | ectopic.shift(fill_value=False))
            change = (normal.diff().abs() / normal).groupby(start).median()
            is_af = (score.reindex(rate.index) > AF_LOG_ODDS) & (change > 0.04)
            rhythm[median_filter(is_af, 3)] = "AFIB"
    return rhythm


def hourly_table(beats, rhythm, readable):
    """Beats of a record with RR, call_rhythm, readable_seconds -> table by hour."""
    run = (beats["symbol"] != beats["symbol"].shift()).cumsum()
    length = run.map(run.value_counts())
    table = pd.DataFrame({"beats": 1, "pauses": beats["RR"] > 2})
    for symbol in "SV":
        ectopic = beats["symbol"] == symbol
        begins = ectopic & ~run.duplicated()
        table[f"{symbol} beats"] = ectopic
        table[f"{symbol} couplets"] = begins & (length == 2)
        table[f"{symbol} runs"] = begins & (length > 2)
    hour = beats["time"].astype(int) // 3600
    is_af = rhythm == "AFIB"
    episode = is_af.groupby((is_af != is_af.shift()).cumsum()).transform("sum")
    rhythms = ["AFIB", "SBRAD", "STACH"]
    of_strips = pd.DataFrame({f"{name} min": rhythm == name for name in rhythms}) / 6
    by_hour = rhythm.index // 3600
    minutes = pd.Series(readable).groupby(np.arange(len(readable)) // 3600).sum() / 60
    hours = pd.DataFrame({"minutes analysed": minutes}).join([
        table.groupby(hour).sum(), of_strips.groupby(by_hour).sum(),
        (episode / 6).rename("longest AFIB min").groupby(by_hour).max()])
    return hours.fillna(0).assign(rate=60 / beats["RR"].groupby(hour).mean())


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


def plot_recording(data, record, beats, rhythm, path):
    """Record of the header, its beats with RR, call_rhythm -> PNG.

    RR intervals over unreadable signal (grey) and atrial fibrillation (red); beats of each class.
    """
    symbols = beats["symbol"].unique()
    figure = Figure(figsize=(12, 12), layout="constrained")
    rr, *papers = np.ravel(figure.subplots(1 + len(symbols)))
    for start, stop in record["unreadable"]:
        rr.axvspan(start / 60, stop / 60, color="0.85")
    for start in rhythm.index[rhythm == "AFIB"]:
        rr.axvspan(start / 60, (start + 10) / 60, ymax=0.05, color="tab:red")
    for paper, symbol in zip(papers, symbols):
        of_class = beats[beats["symbol"] == symbol]
        marker = "." if symbol == "N" else f"${symbol}$"
        rr.scatter(of_class["time"] / 60, of_class["RR"].clip(upper=2.5), marker=marker)
        some = of_class.index[::len(of_class) // 5 + 1]
        voltage = np.pad(data.signals[some, 0], ((0, 0), (0, 9)), constant_values=np.nan)
        voltage = voltage.reshape(1, -1)   # side by side, with gaps
        title = f"{symbol}: {len(some)} of {len(of_class):,} beats"
        draw_ecg(paper, data.rate, voltage, np.zeros_like(voltage), [""], title)
    rr.set(xlabel="time (min)", ylabel="RR interval (s)", ylim=(0, 2.5))
    save_figure(figure, f"{record['name']}. Grey: unreadable. Red: atrial fibrillation", path)


def annotate(predictions, name):
    """Writes what the models call in recordings without a reference; nothing is scored."""
    data = predictions.data
    path = Path(f"ptbxl_{MODEL}_strips_model.pth")
    model = read_checkpoint("ptbxl", MODEL, strips=True) if path.exists() else None
    calls = call_beats(predictions)
    records = data.header.records
    pictures = [f"{name}_{record['name'].replace('/', '_')}.png" for record in records[:PICTURES]]
    tables, hours, marks = [], {}, []
    with new_files(f"{name}_beats.csv", f"{name}_hours.csv", *pictures) as paths:
        for number, record in enumerate(tqdm(records, desc="recordings", disable=None)):
            readable = readable_seconds(record, data.rate)
            beats = calls[calls["record"] == record["name"]]
            beats = beats.assign(RR=rr_before(beats, readable))
            rhythm = call_rhythm(beats, data, model)
            tables.append(beats)
            hours[record["name"]] = hourly_table(beats, rhythm, readable)
            marks.append(marks_of(record, rhythm if model else rhythm[:0]))
            if number < PICTURES:
                plot_recording(data, record, beats, rhythm, paths[2 + number])
        beats = pd.concat(tables)
        beats.rename(columns={"symbol": "class"}).to_csv(
            paths[0], index=False, float_format="%.4f")
        hours = pd.concat(hours, names=["record", "hour"])
        if not model:
            hours = hours.drop(columns=["AFIB min", "longest AFIB min"])
        hours.to_csv(paths[1])
    marks = pd.concat([*marks, beats]).sort_values(["record", "sample"], kind="stable")
    write_annotations(marks, f"{name}_annotations", predictions.checkpoint.model)
    print_tables({"calls by hour, the first 48 rows": hours.head(48)})
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
    names = truth.columns
    names = names[names.str.replace(EARLY_PAC, "PAC").isin([ABNORMAL, *trained])]
    asked = (truth[names] == 1).any()
    if not asked.any():   # there are no labels
        return names
    return names[asked | (names == ABNORMAL)]


def compare(checkpoint, source, target):
    """Checkpoint, both datasets -> dict of side -> Result, and thresholds, of shared questions."""
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
    return {side: result._replace(truth=result.truth[names], scores=result.scores[names])
            for side, result in results.items()}, thresholds


def compare_strips(checkpoint, source, target, report, name):
    """Reports how well the model answers the questions on both databases."""
    results, thresholds = compare(checkpoint, source, target)
    report["notes"] = {side: result.note for side, result in results.items()}
    report["tables"] = {}
    if (results["cross-domain"].truth == 1).any(axis=None):
        report["tables"] = cross_tables(results, thresholds)
    else:
        report["title"] += ". No positive labels: nothing was scored"
    print(*(f"{side}: {note}" for side, note in report["notes"].items()), sep="\n")
    write_report(report, scores_table(results, thresholds), name)


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
