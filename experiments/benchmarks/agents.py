"""Measures algorithms for teams: a matrix game, two divergences, win rates, and speed.

Each part prints a Markdown table:

    python3 -m uv run --extra jaxmarl experiments/benchmarks/agents.py game
    python3 -m uv run --extra jaxmarl experiments/benchmarks/agents.py kl
    python3 -m uv run --extra jaxmarl experiments/benchmarks/agents.py wins --runs FOLDER ...
    python3 -m uv run --extra jaxmarl experiments/benchmarks/agents.py speed
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from timing import time_in_turns

from trpo_jax import envs
from trpo_jax.algorithms import hatrpo, trpo
from trpo_jax.analysis.statistics import summarize
from trpo_jax.cli.command_line import Parser, cache_compilations
from trpo_jax.distributions import Categorical
from trpo_jax.envs.native import CLIMBING
from trpo_jax.records.policies import read_policies
from trpo_jax.records.runs import read_description
from trpo_jax.rollout import rollout_with_state, start_episodes
from trpo_jax.running.train import train
from trpo_jax.teams import make_team

ROUNDING = 1e-5  # error of a return between -30 and 11 in 32 bits
REFERENCE, SPREAD = "jaxmarl/MPE_simple_reference_v3", "jaxmarl/MPE_simple_spread_v3"


def game(args: Any) -> Iterator[str]:
    """Yields a table of the changes of a team's exact return in the climbing game."""
    env = envs.make("native/ClimbingGame")
    config = hatrpo.Config(
        num_envs=args.num_envs, num_steps=1, critic_minibatches=4, max_kl=0.0003, damping=0.001
    )
    algorithm = hatrpo.make(env, config)
    payoffs = jnp.asarray(CLIMBING)

    def joint(state):
        _, distribution = algorithm.policy(state.actor, (), jnp.ones((1, 2, 1)))
        one, other = jax.nn.softmax(distribution.logits[0])
        return one[:, None] * other

    def body(state, _):
        before = joint(state)
        state, _ = algorithm.update(state)
        after = joint(state)
        gain = jnp.sum((after - before) * payoffs)
        # The gain is the mean of (ratio - 1) A. A batch estimates it with this standard error.
        terms = (after / before - 1) * (payoffs - jnp.sum(before * payoffs))
        variance = jnp.sum(before * terms**2) - gain**2
        error = jnp.sqrt(jnp.maximum(variance, 0) / config.num_envs)
        return state, (jnp.sum(after * payoffs), gain, error)

    @jax.jit
    def run(key):
        return jax.lax.scan(body, algorithm.init(key), None, args.num_updates)[1]

    yield (
        "| seed | first return | last return | updates that gained | updates that lost | largest "
        "loss | largest loss / standard error |"
    )
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    keys = jnp.stack([jax.random.key(seed) for seed in args.seeds])
    found = map(np.asarray, jax.vmap(run)(keys))
    for seed, values, gains, errors in zip(args.seeds, *found, strict=True):
        lost = gains < -ROUNDING
        worst = int(np.argmin(gains))
        loss = "0 | 0"
        if lost.any():
            loss = f"{-gains[worst]:.5f} | {-gains[worst] / errors[worst]:.2f}"
        yield (
            f"| {seed} | {values[0]:.2f} | {values[-1]:.2f} | {(gains > ROUNDING).sum()} | "
            f"{lost.sum()} | {loss} |"
        )


class RatioDivergence(NamedTuple):
    """A `Categorical` with another divergence: the sum over a of r_a - 1 - log r_a.

    r_a is the new probability of a, divided by the old probability. The terms have no weights, so
    rare actions count as much as frequent ones. The metric is the second derivative of this
    divergence, sum_a (d log p_a)^2. The discrete policies of HARL use this divergence.
    """

    logits: Any

    def sample(self, key):
        """Draws one action for each batch element."""
        return Categorical(self.logits).sample(key)

    def mode(self):
        """Returns the most probable action."""
        return Categorical(self.logits).mode()

    def log_prob(self, action):
        """Returns the log-probability of each action."""
        return Categorical(self.logits).log_prob(action)

    def entropy(self):
        """Returns the entropy."""
        return Categorical(self.logits).entropy()

    def kl(self, other):
        """Returns sum_a (r_a - 1 - log r_a), r = other / self."""
        log_ratio = jax.nn.log_softmax(other.logits) - jax.nn.log_softmax(self.logits)
        return jnp.sum(jnp.expm1(log_ratio) - log_ratio, axis=-1)

    def fisher_product(self, tangent):
        """Returns (I - p 1^T)(I - 1 p^T) v."""
        probs = jax.nn.softmax(self.logits)
        moved = tangent.logits - jnp.sum(probs * tangent.logits, axis=-1, keepdims=True)
        return RatioDivergence(moved - probs * jnp.sum(moved, axis=-1, keepdims=True))


def with_ratio_divergence(agent: Any) -> Any:
    """Returns an agent whose trust region uses `RatioDivergence`."""
    policy = agent.policy

    def step(params, carry, observations):
        carry, distribution = policy.step(params, carry, observations)
        return carry, RatioDivergence(distribution.logits)

    def unroll(*args):
        return RatioDivergence(policy.unroll(*args).logits)

    return agent._replace(policy=policy._replace(step=step, unroll=unroll, settings=None))


def kl(args: Any) -> Iterator[str]:
    """Yields a table of the return of HATRPO with the KL divergence and with `RatioDivergence`."""
    env = envs.make(REFERENCE)
    yield "| divergence | max_kl | return, mean over seeds | each seed | entropy at the end |"
    yield "| --- | ---: | ---: | --- | ---: |"
    config = hatrpo.Config(
        num_envs=128,
        num_steps=25,
        critic_minibatches=4,
        damping=0.01,
        max_kl=0.02,
        decay_steps=args.total_steps,
    )
    own = make_team(env, config)
    for name, agent in (("KL", own), ("ratios", with_ratio_divergence(own))):
        run = train(
            env,
            config,
            algorithm=hatrpo,
            agent=agent,
            seeds=tuple(args.seeds),
            total_steps=args.total_steps,
            evaluation_episodes=200,
            progress=False,
        )
        scores = run.evaluation.per_seed
        each = ", ".join(f"{x:.1f}" for x in scores)
        entropy = run.metrics["entropy"][:, -1].mean()
        yield f"| {name} | {config.max_kl:g} | {summary(scores)} | {each} | {entropy:.2f} |"


def summary(scores: Sequence[float]) -> str:
    """Returns the mean of scores with its 95 % interval, as text."""
    found = summarize(np.asarray(scores))
    interval = "" if found.ci95 is None else " ({:.1f} to {:.1f})".format(*found.ci95)
    return f"{found.mean:.1f}{interval}"


def wins(args: Any) -> Iterator[str]:
    """Yields a table of win rates in SMAX, of stored policies with their most likely actions."""
    yield "| run | steps | seeds | win rate | each seed |"
    yield "| --- | ---: | ---: | ---: | --- |"
    for folder in args.runs:
        description = read_description(folder, "env", "env_args", "algorithm", "total_steps")
        env = envs.make(description["env"], description["env_args"])
        policies = read_policies(folder, env)

        @jax.jit
        def rate(actor, key, policies=policies, env=env):
            def act(key, episodes, carry):
                carry, distribution = policies.policy(actor, carry, episodes.observation)
                return distribution.mode(), (), carry

            start_key, run_key = jax.random.split(key)
            episodes = start_episodes(env, start_key, args.episodes)
            carry = policies.carry(args.episodes)
            _, _, steps = rollout_with_state(env, act, run_key, episodes, carry, env.time_limit)
            # The first episode of each environment.
            first = jnp.cumsum(steps.done, axis=0) - steps.done == 0
            won = steps.done & first & (steps.reward >= 1)  # the game pays 1 for a win
            return jnp.mean(jnp.any(won, axis=0))

        count = len(policies.seeds)
        actors = [jax.tree.map(lambda x, i=i: x[i], policies.actor) for i in range(count)]
        rates = [100 * float(rate(actor, jax.random.key(7))) for actor in actors]
        each = ", ".join(f"{x:.0f}" for x in rates)
        yield (
            f"| {folder.name} | {description['total_steps']:,} | {count} | {summary(rates)} % | "
            f"{each} |"
        )


def speed(args: Any) -> Iterator[str]:
    """Yields a table of steps per second: teams, and one agent with a batch of the same size."""
    cases = {
        "hatrpo, simple_spread (3 agents)": hatrpo.make(
            envs.make(SPREAD), hatrpo.Config(num_envs=128, num_steps=25, critic_minibatches=4)
        ),
        "hatrpo, simple_spread, one shared policy": hatrpo.make(
            envs.make(SPREAD),
            hatrpo.Config(num_envs=128, num_steps=25, critic_minibatches=4, share_parameters=True),
        ),
        "hatrpo, simple (1 agent)": hatrpo.make(
            envs.make("jaxmarl/MPE_simple_v3"),
            hatrpo.Config(num_envs=128, num_steps=25, critic_minibatches=4),
        ),
        "trpo, CartPole": trpo.make(
            envs.make("CartPole-v1"), trpo.Config(num_envs=128, num_steps=25, critic_minibatches=4)
        ),
    }
    runs = {}
    for name, algorithm in cases.items():
        update = jax.jit(algorithm.update)
        state, _ = update(jax.jit(algorithm.init)(jax.random.key(0)))
        runs[name] = lambda update=update, state=state: update(state)
    seconds = time_in_turns(runs, args.repeats)
    yield "| case | ms an update | environment steps per second |"
    yield "| --- | ---: | ---: |"
    for name, x in seconds.items():
        median = float(np.median(x))
        yield f"| {name} | {1e3 * median:.0f} | {128 * 25 / median:,.0f} |"


PARTS = {"game": game, "kl": kl, "wins": wins, "speed": speed}


def build_parser() -> Parser:
    """Returns the parser of the command line."""
    parser = Parser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add(
        "part",
        choices=PARTS,
        help="what to measure: game is the return in a matrix game, kl compares two divergences, "
        "wins plays stored policies of SMAX, speed counts steps per second",
    )
    seeds, numbers = [100, 101, 102, 103, 104], {"type": int, "metavar": "N"}
    help_text = "seeds of game and of kl (default: 100 101 102 103 104)"
    add("--seeds", **numbers, nargs="+", default=seeds, help=help_text)
    help_text = "kl: environment steps of each run (default: 1,000,000)"
    add("--total-steps", **numbers, default=1_000_000, help=help_text)
    help_text = "game: number of updates of each seed (default: 1000)"
    add("--num-updates", **numbers, default=1000, help=help_text)
    help_text = "game: number of episodes in one update (default: 2048)"
    add("--num-envs", **numbers, default=2048, help=help_text)
    help_text = "wins: folders of finished runs on SMAX"
    add("--runs", type=Path, nargs="+", default=[], metavar="FOLDER", help=help_text)
    help_text = "wins: number of episodes of each seed (default: 256)"
    add("--episodes", **numbers, default=256, help=help_text)
    help_text = "speed: number of timed turns of each case (default: 9)"
    add("--repeats", **numbers, default=9, help=help_text)
    return parser


def main() -> None:
    """Prints the table of a part."""
    args = build_parser().parse_args()
    cache_compilations()
    for line in PARTS[args.part](args):
        print(line, flush=True)


if __name__ == "__main__":
    main()
