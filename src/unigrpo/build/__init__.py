"""From the names in a recipe to things: the one place that knows models, worlds, rewards and methods by name.

checks: what is known before a model is loaded · models: which model, where, in which precision · data: prompts,
demonstrations, suites · worlds, rewards: those that ship · sampling: how a recipe draws and scores · trial: rewards
tried at the start · runs: a recipe, whole.
"""

from unigrpo.build.checks import check_data, check_drawn, check_here, check_listed, check_suite
from unigrpo.build.data import Suite, is_questions, prompts, questions, suite
from unigrpo.build.models import (
    DTYPES,
    builtin_folder,
    device_of,
    lasting_name,
    model_folder,
    policy,
    started,
    stored,
    with_adapter,
)
from unigrpo.build.rewards import SHIPPED, reward
from unigrpo.build.runs import RecipeEvaluator, parts, source
from unigrpo.build.sampling import check_rewards, check_shares, evaluation_sampling, training_sampling
from unigrpo.build.suites import MAKERS, STREAM, Examining, evaluation_suite, of_prompts, try_suite
from unigrpo.build.trial import drawn_size, try_reward, try_rewards
from unigrpo.build.worlds import EMBEDDED, EmbeddedWorld, can_judge, known_of
from unigrpo.build.worlds import speaking as world_of

__all__ = [
    "DTYPES",
    "EMBEDDED",
    "MAKERS",
    "SHIPPED",
    "STREAM",
    "EmbeddedWorld",
    "Examining",
    "RecipeEvaluator",
    "Suite",
    "builtin_folder",
    "can_judge",
    "check_data",
    "check_drawn",
    "check_here",
    "check_listed",
    "check_rewards",
    "check_shares",
    "check_suite",
    "device_of",
    "drawn_size",
    "evaluation_sampling",
    "evaluation_suite",
    "is_questions",
    "known_of",
    "lasting_name",
    "model_folder",
    "of_prompts",
    "parts",
    "policy",
    "prompts",
    "questions",
    "reward",
    "source",
    "started",
    "stored",
    "suite",
    "training_sampling",
    "try_reward",
    "try_rewards",
    "try_suite",
    "with_adapter",
    "world_of",
]
