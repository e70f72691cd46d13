"""NannyML: ``DataReconstructionDriftCalculator`` with its defaults (3 standard deviations)."""

import json
import sys

import nannyml
import numpy as np
import pandas as pd


def frame(x: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(x, columns=[f"f{i}" for i in range(x.shape[-1])])


def main(source: str, target: str) -> None:
    found = np.load(source)
    alarms = []
    for reference, days in zip(found["reference"], found["days"], strict=True):
        size = days.shape[1]
        names = [f"f{i}" for i in range(days.shape[-1])]
        calculator = nannyml.DataReconstructionDriftCalculator(column_names=names, chunk_size=size)
        calculator.fit(frame(reference))
        result = calculator.calculate(frame(days.reshape(-1, days.shape[-1])))
        table = result.filter(period="analysis").to_df()
        alarms.append([bool(a) for a in table[("reconstruction_error", "alert")]])
    about = {"version": nannyml.__version__, "default": "PCA reconstruction, 3 deviations"}
    with open(target, "w") as stream:
        json.dump({"alarms": alarms, "about": about}, stream)


main(*sys.argv[1:3])
