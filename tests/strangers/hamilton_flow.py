"""The functions of a dataflow, for hamilton_use.py: their parameters name what they are made of."""

import pandas as pd


def spend() -> pd.Series:
    return pd.Series([10.0, 20.0, 30.0])


def signups() -> pd.Series:
    return pd.Series([1.0, 2.0, 3.0])


def spend_per_signup(spend: pd.Series, signups: pd.Series) -> pd.Series:
    return spend / signups
