"""Evidently: ``DataDriftPreset`` with its defaults (drift if half of the columns drift)."""

import json
import sys

import evidently
import numpy as np
import pandas as pd
from evidently import Report
from evidently.presets import DataDriftPreset


def frame(x: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(x, columns=[f"f{i}" for i in range(x.shape[1])])


def drifted(reference: np.ndarray, day: np.ndarray) -> bool:
    result = Report([DataDriftPreset()]).run(frame(day), frame(reference)).dict()
    share = next(m["value"]["share"] for m in result["metrics"] if "Drifted" in m["metric_name"])
    return bool(share >= 0.5)


def main(source: str, target: str) -> None:
    found = np.load(source)
    alarms = [
        [drifted(reference, day) for day in days]
        for reference, days in zip(found["reference"], found["days"], strict=True)
    ]
    about = {"version": evidently.__version__, "default": "DataDriftPreset, half of the columns"}
    with open(target, "w") as stream:
        json.dump({"alarms": alarms, "about": about}, stream)


main(*sys.argv[1:3])
