"""All the plots, and how to read one.

A plot is a list of events with a few ways to tell each, and with turns left to chance. Slots are
the same everywhere: a is the hero, b and c are friends, e is somebody older, o is anybody else,
d an animal, p and q are places, t and u are things, and we is a and b together. The world refuses
events that cannot happen, so the order of the calls is the order of causes and effects.
"""

from __future__ import annotations

import tale_plots_friends
import tale_plots_home
import tale_plots_outside
from tale_stage import Plot

PLOTS: tuple[Plot, ...] = (
    tale_plots_home.PLOTS + tale_plots_friends.PLOTS + tale_plots_outside.PLOTS
)
