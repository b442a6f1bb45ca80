"""Label names of each data set, in its own order, and what they are called here."""

from __future__ import annotations

from distill.data.layouts import normal

# A layout's data in scores and model cards.
DATA_NAMES = {
    "ferplus": "FER+",
    "fer2013": "FER2013",
    "rafdb": "RAF-DB",
    "folders": "class folders",
}

# FER+ (Barsoum et al. 2016): the order of the vote columns in label.csv.
FERPLUS = (
    "neutral",
    "happiness",
    "surprise",
    "sadness",
    "anger",
    "disgust",
    "fear",
    "contempt",
)
FERPLUS_EXTRA = ("unknown", "not-a-face")

# FER2013 (Goodfellow et al. 2013): the challenge's own labels, 0 to 6.
FER2013 = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")

# RAF-DB (Li, Deng and Du 2017): list_patition_label.txt numbers its basic classes from 1.
RAFDB = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")

# Other data sets' words for the same classes, as folder names.
SAME = {
    "angry": "anger",
    "disgusted": "disgust",
    "fearful": "fear",
    "afraid": "fear",
    "happy": "happiness",
    "sad": "sadness",
    "surprised": "surprise",
}


def canonical(name: str) -> str:
    """Translate a class folder's name into our words, its letters composed."""
    lower = normal(normal(name).strip().lower())
    return SAME.get(lower, lower)
