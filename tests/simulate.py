"""Writes simulated ECG databases in the file layouts of MIT-BIH and PTB-XL.

With them the demo and the tests run every script without a download. The signals follow a model of
the heart, so that there is something to learn; they are no recordings of patients.

1. Rhythm: intervals vary with blood pressure (0.1 Hz) and breathing (0.25 Hz), after McSharry
   et al. 2003, IEEE Trans Biomed Eng 50(3), 289-294. Ectopic beats come early or late.
2. Beats: each wave (P Q R S ST T) is a Gaussian in time whose height is a vector, the heart's
   electric dipole: Sameni et al. 2007, EURASIP J Adv Signal Process 43407; Clifford et al. 2010,
   Physiol Meas 31, 595-609. A disease moves, widens, shrinks or turns some of these waves.
3. Leads: a lead is the dipole's projection on the lead's vector, after Dower et al. 1980,
   Clin Cardiol 3, 87-95. Baseline wander, muscle noise and mains hum are added.

Takes 0.2 s for two minutes of MIT-BIH and 3 ms for a record of PTB-XL.
"""
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import wfdb
from scipy.signal import lfilter, resample_poly
from scipy.spatial.transform import Rotation

SIMULATED = "simulated ECG, not a recording of a patient"   # a comment line of every header

# ---- The heart ----

WAVES = ("P", "Q", "R", "S", "ST", "T")
# One row for each of WAVES: centre (s after the R peak), width (standard deviation, s) and the
# dipole in mV along x (to the left arm), y (to the feet) and z (to the back), Frank's axes.
BEATS = {
    # normal: the septum first (to the right and front), the left ventricle, then its base
    "N": ((-.160, .024, .07, .11, -.02), (-.024, .008, -.14, -.05, -.25),
          (.000, .011, 1.00, .85, .15), (.022, .010, -.20, -.14, .55),
          (.160, .050, .03, .03, -.04), (.270, .042, .28, .22, -.14)),
    # left bundle branch block: no septal q, a slow notched QRS to the left and back, T opposite
    "L": ((-.170, .024, .07, .11, -.02), (-.030, .015, .75, .65, .35),
          (.012, .016, .45, .60, .90), (.046, .016, .75, .45, .75),
          (.160, .055, -.10, -.08, -.11), (.290, .050, -.30, -.20, -.32)),
    # right bundle branch block: a normal start, then slowly to the right and front
    "R": ((-.160, .024, .07, .11, -.02), (-.024, .008, -.14, -.05, -.25),
          (.000, .011, .95, .80, .20), (.055, .020, -.60, -.35, -.55),
          (.160, .050, .03, .02, .08), (.280, .045, .26, .18, .16)),
    # ventricular: no P, a wide and large QRS, ST and T opposite
    "V": ((-.160, .024, .00, .00, .00), (-.045, .024, .20, .60, .30),
          (.005, .030, .50, 1.30, .80), (.060, .026, .15, .40, .35),
          (.170, .055, -.12, -.20, -.16), (.300, .066, -.32, -.60, -.44)),
    # paced from the right ventricle's apex: a spike in P's place, a wide QRS upwards and back
    "/": ((.000, .003, .50, -.80, .30), (.030, .014, .40, -.45, .35),
          (.062, .018, .50, -.80, .80), (.100, .018, .40, -.55, .55),
          (.210, .050, -.10, .20, -.20), (.330, .055, -.28, .50, -.35))}
# Ectopic beats: the interval before them, and the two around them together, in normal intervals.
# Together 2: a full compensatory pause. An atrial beat resets the sinus node, so less than 2.
TIMING = {"A": (.70, 1.80), "a": (.62, 1.75), "J": (.72, 1.85), "V": (.64, 2.00), "F": (.92, 2.00),
          "e": (1.30, 2.30), "j": (1.35, 2.35), "E": (1.50, 2.50)}
# Dower's lead vectors: mV in the lead for each mV of the dipole's x, y, z.
DOWER = {"I": (.632, -.235, .059), "II": (.235, 1.066, -.132),
         "V1": (-.515, .157, -.917), "V2": (.044, .164, -1.387), "V3": (.882, .098, -1.277),
         "V4": (1.213, .127, -.601), "V5": (1.125, .127, -.086), "V6": (.831, .076, .230)}


class Patient(NamedTuple):
    """What all beats of one patient share."""
    rate: float              # beats per minute
    hrv: float               # standard deviation of the intervals, relative to their mean
    breathing: float         # Hz
    rotation: np.ndarray     # (3, 3): how the heart lies in the chest
    gains: np.ndarray        # (waves, 1): heights, relative to BEATS
    stretch: np.ndarray      # (waves, 2): centres and widths, relative to BEATS
    wander: float            # mV, baseline wander
    noise: float             # mV, standard deviation of the muscle noise
    mains: float = 50        # Hz
    fibrillation: bool = False   # atrial


def draw_patient(rng):
    """A random patient. ST and T come earlier in a fast heart (Bazett: root of the interval)."""
    rate = float(np.clip(rng.lognormal(np.log(73), .20), 45, 130))
    stretch = rng.lognormal(0, (.03, .12), (len(WAVES), 2))
    stretch[-2:, 0] *= np.sqrt(73 / rate)
    return Patient(
        rate=rate, hrv=rng.uniform(.015, .06), breathing=rng.uniform(.20, .30),
        rotation=Rotation.from_rotvec(rng.normal(0, .22, 3)).as_matrix(),
        gains=rng.lognormal(0, .20) * rng.lognormal(0, .20, (len(WAVES), 1)), stretch=stretch,
        wander=rng.lognormal(np.log(.08), .5), noise=rng.lognormal(np.log(.010), .4))


def beat_shapes(rng, usual):
    """All beats of one patient, {symbol: (waves, 5)}; usual (waves, 5), the conducted one, is N.

    A fusion beat lies, wave by wave, between the two beats that meet in it.
    """
    normal, right, ventricular, paced = (np.array(BEATS[s]) for s in "NRV/")
    turn = Rotation.from_rotvec(rng.normal(0, .45, 3)).as_matrix()
    side = rng.choice((1, 1, -1))                         # from the right ventricle, or the left
    ventricular[:, 2:] = side * rng.uniform(.5, 1.1) * ventricular[:, 2:] @ turn.T
    share = rng.uniform(.25, .65)                         # of the ventricular beat in a fusion
    atrial = usual.copy()
    nodal = usual.copy()
    unclear = usual.copy()
    fusion = (normal + paced) / 2
    atrial[0, 0] += rng.uniform(-.02, .04)                # P from another place of the atria
    atrial[0, 2:] *= rng.uniform(-.9, .6, 3)
    nodal[0, 2:] = 0
    fusion[0] = paced[0]                                  # the spike stays a spike
    unclear[:, 2:] = usual[:, 2:] @ Rotation.from_rotvec(rng.normal(0, 1.5, 3)).as_matrix()
    return {"N": usual, "V": ventricular, "E": ventricular,
            "F": usual + share * (ventricular - usual),
            "A": atrial, "e": atrial, "a": atrial + .6 * (right - normal),
            "J": nodal, "j": nodal, "/": paced, "f": fusion, "Q": unclear}


def draw_symbols(rng, beats, usual, shares):
    """(beats,) str: usual beats, and others strewn in, each symbol once at least.

    shares: {symbol: percent}. The first and the last beat are usual ones: they fall outside.
    """
    symbols = np.full(beats, usual)
    free = iter(rng.permutation(np.arange(1, beats - 1)))
    for symbol, percent in shares.items():
        for _, place in zip(range(max(1, round(beats * percent / 100))), free):
            symbols[place] = symbol
    return symbols


def beat_times(rng, patient, symbols, seconds):
    """R peaks (beats,) float64 in s: the first before 0, the last after `seconds`.

    McSharry's rhythm is a random series whose spectrum peaks at 0.1 Hz and at the breathing
    rate. In atrial fibrillation intervals are irregular and independent of each other.
    """
    beats = len(symbols)
    length = max(256, beats)
    frequency = np.fft.rfftfreq(length, 60 / patient.rate)
    power = sum(weight * np.exp(-.5 * ((frequency - peak) / .01) ** 2)
                for weight, peak in ((.5, .10), (1, patient.breathing)))
    phase = np.exp(2j * np.pi * rng.random(len(frequency)))
    series = np.fft.irfft(np.sqrt(power) * phase, length)[:beats]
    intervals = 1 + patient.hrv * series / series.std()
    if patient.fibrillation:
        intervals = np.clip(rng.normal(1, .2, beats), .6, 1.6)
    habit = rng.lognormal(0, .06)                         # premature beats of a patient come alike
    for k, symbol in enumerate(symbols):
        if symbol in TIMING:
            before, around = TIMING[symbol]
            before *= habit if before < .9 else 1
            intervals[k] *= before * rng.lognormal(0, .02)
            intervals[k + 1] *= around - before
    times = np.append(0, np.cumsum(intervals[1:]))        # in normal intervals
    start = rng.uniform(.1, .9) * times[1]                # all but the first and the last beat fall
    end = times[-1] - rng.uniform(.1, .9) * intervals[-1]                  # between start and end
    return (times - start) * seconds / (end - start)


def dipole_of(times, waves, samples, sampling_rate):
    """The dipole (samples, 3) float64 mV: the sum of all waves of all beats.

    times (beats,) s; waves (beats, waves, 5). A Gaussian is evaluated where it is not zero,
    and none is narrower than the sampling can show.
    """
    centre = (times[:, None] + waves[..., 0]).reshape(-1, 1)
    width = np.maximum(waves[..., 1].reshape(-1, 1), .6 / sampling_rate)
    reach = int(4 * width.max() * sampling_rate) + 1
    place = np.round(centre * sampling_rate).astype(int) + np.arange(-reach, reach + 1)
    bump = np.exp(-.5 * ((place / sampling_rate - centre) / width) ** 2)   # (waves, 2 reach + 1)
    place = np.clip(place, -1, samples).ravel() + 1   # two spare samples for what lies outside
    return np.stack([np.bincount(place, (bump * height[:, None]).ravel(), samples + 2)[1:-1]
                     for height in waves[..., 2:].reshape(-1, 3).T], axis=1)


def slow_noise(rng, samples, leads, seconds, sampling_rate):
    """(samples, leads) float64, variance 1: white noise through a low-pass with that memory."""
    keep = np.exp(-1 / (seconds * sampling_rate))
    return lfilter([np.sqrt(1 - keep ** 2)], [1, -keep], rng.normal(size=(samples, leads)), axis=0)


def simulate_ecg(rng, patient, shapes, symbols, seconds, sampling_rate):
    """-> R peaks (beats,) float64 s; (samples, 8) float64 mV, the leads in DOWER's order.

    shapes {symbol: (waves, 5)}; symbols (beats,). McSharry's third equation, z' = (sum of Gaussian
    derivatives) - (z - baseline), is linear, so that recursive filters integrate it: one takes the
    sum of Gaussians itself, one the baseline.
    """
    samples = round(seconds * sampling_rate)
    dt = 1 / sampling_rate
    t = dt * np.arange(samples)[:, None]
    breath = 2 * np.pi * patient.breathing
    times = beat_times(rng, patient, symbols, seconds)
    waves = np.stack([shapes[symbol] for symbol in symbols])               # (beats, waves, 5)
    waves[..., :2] *= patient.stretch
    waves[..., 2:] = patient.gains * waves[..., 2:] @ patient.rotation.T
    height = 1 + .05 * np.sin(breath * times) + .02 * rng.normal(size=len(times))
    waves[..., 2:] *= height[:, None, None]
    if patient.fibrillation:
        waves[:, 0, 2:] = 0                               # no P wave but the atria's tremor
    dipole = dipole_of(times, waves, samples, sampling_rate)
    if patient.fibrillation:
        tremor = np.sin(2 * np.pi * 6 * t + 2 * slow_noise(rng, samples, 1, .3, sampling_rate))
        dipole += .05 * patient.gains[0] * tremor * (.5, .8, -1)
    heart = dipole @ np.array(list(DOWER.values())).T     # (samples, 3) -> (samples, 8)

    leads = heart.shape[1]
    baseline = patient.wander * (2 * slow_noise(rng, samples, leads, 2, sampling_rate)
                                 + rng.normal(size=leads) * np.sin(breath * t))
    ecg = lfilter([1, -1], [1, dt - 1], heart, axis=0)
    ecg += lfilter([0, dt], [1, dt - 1], baseline, axis=0)
    tension = 1 + (rng.random() < .3) * slow_noise(rng, samples, 1, .5, sampling_rate) ** 2
    ecg += patient.noise * tension * rng.normal(size=ecg.shape)
    if patient.mains < sampling_rate / 2:
        ecg += patient.noise * rng.uniform(0, .5, leads) * np.sin(2 * np.pi * patient.mains * t)
    return times, ecg


# ---- MIT-BIH ----

# Each record's usual beat, then the others in percent: after the real counts, with rare beats
# raised so that two minutes show what half an hour does.
MITBIH_BEATS = {
    "100": "N A6 V1", "101": "N A2 Q1", "102": "/ N5 f3 V1", "103": "N A1", "104": "/ f25 N8 V1 Q1",
    "105": "N V3 Q1", "106": "N V25", "107": "/ V3", "108": "N V2 A1 F1 j1", "109": "L V3 F1",
    "111": "L V1", "112": "N A1", "113": "N a1", "114": "N V6 A4 F3 J1", "115": "N",
    "116": "N V5 A1", "117": "N A1", "118": "R A5 V2", "119": "N V22", "121": "N A1 V1", "122": "N",
    "123": "N V1", "124": "R V5 F3 A3 J2 j1", "200": "N V30 A2 F1", "201": "N V10 a5 A2 j1 F1",
    "202": "N A3 V2 a1 F1", "203": "N V15 a2 F2 Q1", "205": "N V3 F2 A1", "207": "L V6 A6 E6 R5",
    "208": "N V30 F13", "209": "N A14 V1", "210": "N V8 F2 a2 E1", "212": "R N33",
    "213": "N F11 V7 A2", "214": "L V11 F1", "215": "N V5 A1 F1", "217": "/ f12 N11 V8",
    "219": "N V3 A1 F1", "220": "N A6", "221": "N V16", "222": "N A10 j8 J1",
    "223": "N V17 A5 F4 e1", "228": "N V17 A1", "230": "N V1", "231": "R N20 A2 V2",
    "232": "R A75 j1", "233": "N V25 F3 A1", "234": "N J2 V1"}
MITBIH_RECORDS = tuple(MITBIH_BEATS)
# Leads of the records that have others than MLII and V1.
MITBIH_LEADS = {"102": ("V5", "V2"), "104": ("V5", "V2"), "114": ("V5", "MLII")}
MITBIH_FIBRILLATION = ("201", "203", "210", "219", "221")


def write_mitbih(folder, records=MITBIH_RECORDS, seconds=120, seed=0):
    """Writes simulated MIT-BIH records: 2 leads, 360 Hz, format 212, 200 units/mV around 1024.

    -> {record: (positions (n,) int64 in samples, n symbols)}, all annotations written. A record
    depends on its name, seconds (5 or more) and seed only.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    annotations = {record: write_mitbih_record(folder, record, seconds, seed) for record in records}
    (folder / "RECORDS").write_text("".join(f"{record}\n" for record in records))
    return annotations


def write_at_rate(source, folder, names, rate, leads):
    """Rewrites simulated records {name: new name} as another database: its rate, its lead names."""
    folder = Path(folder)
    folder.mkdir(parents=True)
    for name, new in names.items():
        record = wfdb.rdrecord(f"{source}/{name}")
        annotation = wfdb.rdann(f"{source}/{name}", "atr")
        signals = resample_poly(record.p_signal, rate, record.fs, axis=0)
        wfdb.wrsamp(new, fs=rate, units=["mV"] * 2, sig_name=leads, p_signal=signals,
                    fmt=["16"] * 2, write_dir=str(folder), comments=record.comments)
        positions = np.round(annotation.sample * rate / record.fs).astype(int)
        wfdb.wrann(new, "atr", positions, annotation.symbol, write_dir=str(folder))
    (folder / "RECORDS").write_text("".join(f"{new}\n" for new in names.values()))


def write_mitbih_record(folder, record, seconds, seed):
    """-> positions (n,) int64 in samples, n symbols."""
    rng = np.random.default_rng([seed, int(record)])
    patient = draw_patient(rng)
    fibrillation = record in MITBIH_FIBRILLATION
    patient = patient._replace(
        gains=1.5 * patient.gains,   # chest electrodes see more
        mains=60, fibrillation=fibrillation)
    usual, *others = MITBIH_BEATS[record].split()
    shapes = beat_shapes(rng, np.array(BEATS[usual])) | {s: np.array(BEATS[s]) for s in "NLR"}
    shares = {other[0]: int(other[1:]) for other in others}
    symbols = draw_symbols(rng, round(seconds * patient.rate / 60) + 2, usual, shares)
    times, ecg = simulate_ecg(rng, patient, shapes, symbols, seconds, 360)

    leads = MITBIH_LEADS.get(record, ("MLII", "V1"))   # MLII: lead II, electrodes on the chest
    columns = [list(DOWER).index(lead.removeprefix("ML")) for lead in leads]
    write_record(folder, record, ecg[:, columns], 360, leads)

    peaks = np.round(times * 360).astype(np.int64)
    marks = [(p, str(s), "") for p, s in zip(peaks, symbols) if 0 <= p < len(ecg)]
    rhythm = "(AFIB" if fibrillation else "(P" if usual == "/" else "(N"
    marks.append((min(18, marks[0][0] // 2), "+", rhythm))
    if int(record) % 3 == 0:                              # other marks that are no beats
        marks += [(len(ecg) // 3, "~", ""), (len(ecg) // 2, "|", "")]
    positions, symbols, notes = map(list, zip(*sorted(marks, key=lambda mark: mark[0])))
    positions = np.array(positions, dtype=np.int64)
    wfdb.wrann(record, "atr", positions, symbols, aux_note=notes, fs=360, write_dir=str(folder))
    return positions, symbols


def write_record(folder, record, ecg, rate, leads=("MLII", "V1")):
    """Writes RECORD.dat and RECORD.hea in MIT-BIH's format, at any rate; ecg (samples, leads) mV.

    No annotations: write_marks does that.
    """
    counts = np.clip(np.round(1024 + 200 * ecg), 0, 2047).astype(np.int64)
    n = len(leads)
    wfdb.wrsamp(record, rate, ["mV"] * n, list(leads), d_signal=counts, fmt=["212"] * n,
                adc_gain=[200] * n, baseline=[1024] * n, comments=[SIMULATED],
                write_dir=str(folder))


def write_marks(folder, record, samples, symbols, annotator="atr"):
    """Writes RECORD.atr, or another annotator: n samples in any order, n symbols."""
    samples, symbols = zip(*sorted(zip(map(int, samples), symbols)))
    wfdb.wrann(record, annotator, np.array(samples), list(symbols), write_dir=str(folder))


def pulse_ecg(peaks, samples, rate):
    """(samples, 2) float64 mV around -0.3 mV: at each peak a QRS complex, then a T wave.

    Both are Gaussians, so that the largest slope and deviation lie at the peak, to the sample.
    """
    reach = round(.5 * rate)
    t = np.arange(-reach, reach + 1) / rate
    beat = np.exp(-.5 * (t / .012) ** 2) + .2 * np.exp(-.5 * ((t - .28) / .04) ** 2)
    at_peak = np.bincount(peaks, minlength=samples)
    return np.convolve(at_peak, beat, "same")[:, None] * (1, -.8) - .3


# ---- PTB-XL ----

PTBXL_LEADS = ("I", "II", "III", "AVR", "AVL", "AVF", "V1", "V2", "V3", "V4", "V5", "V6")
PTBXL_COLUMNS = (
    "ecg_id patient_id age sex height weight nurse site device recording_date report "
    "scp_codes heart_axis infarction_stadium1 infarction_stadium2 validated_by second_opinion "
    "initial_autogenerated_report validated_by_human baseline_drift static_noise burst_noise "
    "electrodes_problems extra_beats pacemaker strat_fold filename_lr filename_hr")
# Superclasses that come together, in percent: the real ones, rounded.
COMBINATIONS = {
    "NORM": 41, "MI": 12, "STTC": 11, "CD": 8, "MI CD": 6, "STTC HYP": 3.5, "": 3.5, "MI STTC": 3,
    "HYP": 2.5, "STTC CD": 2.5, "NORM CD": 2, "MI STTC HYP": 1.5, "CD HYP": 1.5, "MI STTC CD": 1,
    "STTC CD HYP": 1, "MI HYP": 1, "MI STTC CD HYP": 1}
# A part of the real table: code -> kinds (d: diagnostic, f: form, r: rhythm), superclass, subclass,
# its weight among its superclass's codes when one is drawn, description.
STATEMENTS = {
    "NDT": ("df", "STTC", "STTC", 4, "non-diagnostic T abnormalities"),
    "NST_": ("df", "STTC", "NST_", 3, "non-specific ST changes"),
    "NORM": ("d", "NORM", "NORM", 1, "normal ECG"),
    "IMI": ("d", "MI", "IMI", 5, "inferior myocardial infarction"),
    "ASMI": ("d", "MI", "AMI", 4, "anteroseptal myocardial infarction"),
    "LVH": ("d", "HYP", "LVH", 4, "left ventricular hypertrophy"),
    "LAFB": ("d", "CD", "LAFB/LPFB", 4, "left anterior fascicular block"),
    "ISC_": ("d", "STTC", "ISC_", 3, "non-specific ischemic"),
    "IRBBB": ("d", "CD", "IRBBB", 3, "incomplete right bundle branch block"),
    "1AVB": ("d", "CD", "_AVB", 3, "first degree AV block"),
    "IVCD": ("d", "CD", "IVCD", 2, "non-specific intraventricular conduction disturbance (block)"),
    "ISCAL": ("d", "STTC", "ISCA", 3, "ischemic in anterolateral leads"),
    "CRBBB": ("d", "CD", "CRBBB", 4, "complete right bundle branch block"),
    "CLBBB": ("d", "CD", "CLBBB", 4, "complete left bundle branch block"),
    "AMI": ("d", "MI", "AMI", 2, "anterior myocardial infarction"),
    "LMI": ("d", "MI", "LMI", 1, "lateral myocardial infarction"),
    "RVH": ("d", "HYP", "RVH", 1, "right ventricular hypertrophy"),
    "ILBBB": ("d", "CD", "ILBBB", 1, "incomplete left bundle branch block"),
    "ABQRS": ("f", None, None, 0, "abnormal QRS"),
    "PVC": ("f", None, None, 0, "ventricular premature complex"),
    "STD_": ("f", None, None, 0, "non-specific ST depression"),
    "PAC": ("f", None, None, 0, "atrial premature complex"),
    "SR": ("r", None, None, 0, "sinus rhythm"),
    "AFIB": ("r", None, None, 0, "atrial fibrillation"),
    "STACH": ("r", None, None, 0, "sinus tachycardia"),
    "SBRAD": ("r", None, None, 0, "sinus bradycardia"),
    "PACE": ("r", None, None, 0, "normal functioning artificial pacemaker")}
# What a statement of severity 1 adds to the normal beat, in the columns of BEATS.
CHANGES = {
    "1AVB": {"P": (-.085, 0, 0, 0, 0)},
    "LAFB": {"Q": (0, 0, 0, .20, 0), "R": (0, .001, .15, -1.05, 0),
             "S": (.004, .002, .10, -.25, 0)},
    "IVCD": {"Q": (-.012, .005, 0, 0, 0), "R": (0, .009, -.20, -.10, 0),
             "S": (.018, .008, 0, 0, 0)},
    "LVH": {"R": (0, .001, .60, .10, .35), "S": (0, .001, 0, 0, .50),
            "ST": (0, 0, -.10, -.04, .07), "T": (0, 0, -.30, -.10, .15)},
    "RVH": {"R": (0, .001, -.80, .10, -.45), "S": (0, .001, -.30, 0, -.55),
            "T": (0, 0, -.05, -.10, .22)},
    "NDT": {"T": (0, 0, -.26, -.20, .08)},
    "NST_": {"ST": (0, 0, -.09, -.08, .05), "T": (0, 0, -.10, -.08, 0)},
    "STD_": {"ST": (0, 0, -.09, -.08, .05)}}
# The wall of the ventricle that a statement is about, as a direction. In infarction Q and R turn
# away from the dead wall and ST towards the injured rim; in ischaemia ST and T turn away.
WALLS = {"IMI": (0, 1, .1), "ASMI": (0, 0, -1), "AMI": (.3, 0, -.9), "LMI": (1, -.2, .1),
         "ISC_": (.7, .5, -.1), "ISCAL": (.7, 0, -.6)}
PUSH = {"MI": {"Q": -.45, "R": -.20, "ST": .10, "T": -.28}, "STTC": {"ST": -.10, "T": -.40}}   # mV


def write_ptbxl(folder, records=600, seed=0, sampling_rate=100):
    """Writes a simulated PTB-XL: 12 leads, 10 s, format 16, 1000 units/mV, and its two tables.

    -> ptbxl_database.csv as read back, one row per record. At 100 and 500 Hz the same seed gives
    the same patients and beats.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    column = "filename_lr" if sampling_rate == 100 else "filename_hr"
    rows = []
    for ecg_id, visit in enumerate(draw_visits(records, seed), 1):
        row, ecg = simulate_ptbxl_record(ecg_id, *visit, seed, sampling_rate)
        write_format_16(folder / row[column], ecg, sampling_rate)
        rows.append(row)
    table = pd.DataFrame(rows, columns=PTBXL_COLUMNS.split())
    table.to_csv(folder / "ptbxl_database.csv", index=False)
    statement_table().to_csv(folder / "scp_statements.csv")
    return pd.read_csv(folder / "ptbxl_database.csv")


def draw_visits(records, seed):
    """-> for each record (patient, superclasses, fold 1 to 10); one patient in seven has two.

    Combinations come in their exact shares. Patients, those with the rarest superclass first,
    are dealt to the folds in turn, fold 10 first: each fold gets its part of each superclass.
    """
    rng = np.random.default_rng(seed)
    patients = records - records // 8
    shares = np.cumsum(list(COMBINATIONS.values()))
    ranks = np.searchsorted(shares / shares[-1], (rng.permutation(patients) + .5) / patients)
    superclasses = [list(COMBINATIONS)[rank].split() for rank in ranks]
    rarity = "HYP CD STTC MI NORM".split()
    rarest = [min(map(rarity.index, names), default=5) for names in superclasses]
    folds = np.empty(patients, int)
    folds[np.argsort(rarest, kind="stable")] = 10 - np.arange(patients) % 10
    again = rng.choice(patients, records // 8, replace=False)
    visits = rng.permutation(np.append(np.arange(patients), again))
    return [(int(patient), superclasses[patient], int(folds[patient])) for patient in visits]


def simulate_ptbxl_record(ecg_id, number, superclasses, fold, seed, sampling_rate):
    """-> the record's row of the table, a dict; the leads of DOWER, (samples, 8) float64 mV."""
    own = np.random.default_rng([seed, number, 1])        # the patient: the same at each visit
    patient = draw_patient(own)
    sex = int(own.random() < .48)
    age = float(np.clip(round(own.normal(52 if "NORM" in superclasses else 66, 15)), 18, 89))
    rng = np.random.default_rng([seed, ecg_id, 2])        # the visit
    codes = draw_codes(rng, superclasses, patient.rate)
    shapes = beat_shapes(rng, usual_beat(rng, codes))
    extra = {symbol: 12 for code, symbol in (("PVC", "V"), ("PAC", "A")) if code in codes}
    symbols = draw_symbols(rng, round(patient.rate / 6) + 2, "/" if "PACE" in codes else "N", extra)
    patient = patient._replace(fibrillation="AFIB" in codes)
    _, ecg = simulate_ecg(rng, patient, shapes, symbols, 10, sampling_rate)
    name = f"{ecg_id // 1000 * 1000:05d}/{ecg_id:05d}"
    return dict(
        ecg_id=ecg_id, patient_id=float(number + 1), age=age, sex=sex, site=0.0, device="simulated",
        recording_date=str(pd.Timestamp("1990-01-01") + pd.Timedelta(hours=7 * ecg_id)),
        report="simulated ECG: " + ", ".join(STATEMENTS[code][-1] for code in codes),
        scp_codes=str(codes),
        infarction_stadium1="unknown" if "MI" in superclasses else None, second_opinion=False,
        initial_autogenerated_report=False, validated_by_human=True,
        extra_beats="1ES" if extra else None,
        pacemaker="ja, pacemaker" if "PACE" in codes else None, strat_fold=fold,
        filename_lr=f"records100/{name}_lr", filename_hr=f"records500/{name}_hr"), ecg


def draw_codes(rng, superclasses, rate):
    """A statement of each superclass, then forms, then the rhythm: {code: likelihood}.

    As in the real database, 0 stands for an unknown likelihood: forms and rhythms have no other.
    """
    codes = {}
    for superclass in superclasses:
        names = [code for code, row in STATEMENTS.items() if row[1] == superclass]
        if superclass == "CD" and "NORM" in superclasses:
            names = ["IRBBB"]                             # a normal ECG may have this one
        weights = np.array([STATEMENTS[name][3] for name in names], float)
        code = str(rng.choice(names, p=weights / weights.sum()))
        codes[code] = float(rng.choice((100, 80, 50, 35, 15), p=(.7, .1, .1, .05, .05)))
    forms = {"ABQRS": .3 * ("CD" in superclasses), "STD_": .2 * ("STTC" in superclasses),
             "PVC": .07, "PAC": .05}
    codes |= {form: 0.0 for form, share in forms.items() if rng.random() < share}
    rhythm = "STACH" if rate > 100 else "SBRAD" if rate < 55 else "SR"
    if "NORM" not in superclasses:
        rhythm = "PACE" if not superclasses else "AFIB" if rng.random() < .12 else rhythm
    return codes | {rhythm: 0.0}


def usual_beat(rng, codes):
    """The conducted beat (waves, 5) of a heart with these statements.

    How far each one shows is drawn: some are plain to see, some nearly invisible, as in reality.
    """
    normal = np.array(BEATS["N"])
    beat = normal.copy()
    for code in codes:
        severity = rng.gamma(3, .3)                       # mean 0.9, standard deviation 0.5
        for wave, change in CHANGES.get(code, {}).items():
            beat[WAVES.index(wave)] += severity * np.array(change)
        if code in WALLS:
            for wave, push in PUSH[STATEMENTS[code][1]].items():
                beat[WAVES.index(wave), 2:] += severity * push * np.array(WALLS[code])
        if code.endswith(("LBBB", "RBBB")):               # complete, or incomplete: part of the way
            part = rng.uniform(.7, 1) if code[0] == "C" else .45 * severity
            beat += part * (BEATS[code[1]] - normal)
    return beat


def write_format_16(path, ecg, sampling_rate):
    """Writes path.dat and path.hea with 12 leads; ecg (samples, 8) float64 mV, DOWER's leads."""
    i, ii = ecg[:, :2].T
    limbs = [i, ii, ii - i, -(i + ii) / 2, i - ii / 2, ii - i / 2]   # Einthoven, Goldberger
    counts = np.round(1000 * np.column_stack([*limbs, ecg[:, 2:]]))
    counts = np.clip(counts, -32768, 32767).astype("<i2")
    lines = [f"{path.name} 12 {sampling_rate} {len(counts)}"]
    for lead, values in zip(PTBXL_LEADS, counts.T):
        checksum = int(values.sum(dtype=np.int64)) % 65536
        lines.append(f"{path.name}.dat 16 1000.0(0)/mV 16 0 {values[0]} {checksum} 0 {lead}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".dat").write_bytes(counts.tobytes())
    path.with_suffix(".hea").write_text("\n".join([*lines, f"# {SIMULATED}"]) + "\n")


def statement_table():
    """scp_statements.csv: a row per code, columns of the real one, 1.0 where a kind applies."""
    columns = ["description", "diagnostic", "form", "rhythm", "diagnostic_class",
               "diagnostic_subclass"]
    rows = []
    for kinds, superclass, subclass, _, text in STATEMENTS.values():
        flags = [1.0 if kind in kinds else None for kind in "dfr"]
        rows.append([text, *flags, superclass, subclass])
    return pd.DataFrame(rows, index=list(STATEMENTS), columns=columns)
