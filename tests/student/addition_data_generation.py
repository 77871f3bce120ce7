import random

import pandas as pd

from addition_lib import create_datasets


def generate_addition_data(num_samples):
    samples, seen = [], set()
    while len(samples) < num_samples:
        pair = sorted(random.randint(1000, 9999) for _ in range(2))
        if tuple(pair) not in seen:
            seen.add(tuple(pair))
            random.shuffle(pair)
            samples.append(f"{pair[0]}+{pair[1]}={sum(pair)}")
    return samples


def describe(path):
    return pd.Series(len(text) for text in create_datasets(path).words).describe()
