"""Measures teams: the theorem in a matrix game, two KL divergences, win rates, and speed.

Each part prints a table in Markdown:

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

ROUNDING = 1e-5  # of a return between -30 and 11, computed in 32 bits
REFERENCE, SPREAD = "jaxmarl/MPE_simple_reference_v3", "jaxmarl/MPE_simple_spread_v3"


def game(args: Any) -> Iterator[str]:
    """Yields how the exact return of a team moves in each update of the climbing game."""
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
        # The gain is the mean of (ratio - 1) A, which a batch knows up to its standard error.
        terms = (after / before - 1) * (payoffs - jnp.sum(before * payoffs))
        variance = jnp.sum(before * terms**2) - gain**2
        error = jnp.sqrt(jnp.maximum(variance, 0) / config.num_envs)
        return state, (jnp.sum(after * payoffs), gain, error)

    @jax.jit
    def run(key):
        return jax.lax.scan(body, algorithm.init(key), None, args.num_updates)[1]

    yield (
        "| seed | first return | last return | updates that gained | updates that lost | largest "
        "loss | the same over its standard error |"
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

    r_a is the new probability of a over the old one. The terms are not weighted by probabilities,
    so a choice that is hardly ever taken counts as much as one that always is. The metric is the
    second derivative of it, sum_a (d log p_a)^2. The discrete policies of HARL have this one.
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
    """Returns an agent whose trust region is measured by `RatioDivergence`."""
    policy = agent.policy

    def step(params, carry, observations):
        carry, distribution = policy.step(params, carry, observations)
        return carry, RatioDivergence(distribution.logits)

    def unroll(*args):
        return RatioDivergence(policy.unroll(*args).logits)

    return agent._replace(policy=policy._replace(step=step, unroll=unroll, settings=None))


def kl(args: Any) -> Iterator[str]:
    """Yields the return of HATRPO with the KL divergence and with the other one."""
    env = envs.make(REFERENCE)
    yield "| divergence | max_kl | return, mean over seeds | each seed | entropy at the end |"
    yield "| --- | ---: | ---: | --- | ---: |"
    for name, max_kl in (("KL", 0.02), ("ratios", 0.02)):
        config = hatrpo.Config(
            num_envs=128,
            num_steps=25,
            critic_minibatches=4,
            damping=0.01,
            max_kl=max_kl,
            decay_steps=args.total_steps,
        )
        agent = make_team(env, config)
        agent = with_ratio_divergence(agent) if name == "ratios" else agent
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
        yield f"| {name} | {max_kl:g} | {summary(scores)} | {each} | {entropy:.2f} |"


def summary(scores: Sequence[float]) -> str:
    """Returns a mean with its 95 % interval."""
    found = summarize(np.asarray(scores))
    interval = "" if found.ci95 is None else " ({:.1f} to {:.1f})".format(*found.ci95)
    return f"{found.mean:.1f}{interval}"


def wins(args: Any) -> Iterator[str]:
    """Yields the win rate of stored policies of SMAX, with the most likely actions."""
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
            first = jnp.cumsum(steps.done, axis=0) - steps.done == 0  # of each environment
            won = steps.done & first & (steps.reward >= 1)  # the bonus of the game
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
    """Yields steps per second of a team, and of TRPO with one agent and as large a batch."""
    cases = {
        "hatrpo, simple_spread (3 agents)": hatrpo.make(
            envs.make(SPREAD), hatrpo.Config(num_envs=128, num_steps=25, critic_minibatches=4)
        ),
        "hatrpo, the same, one policy for all": hatrpo.make(
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
    add("part", choices=PARTS, help="what to measure")
    add("--seeds", type=int, nargs="+", default=[100, 101, 102, 103, 104], help="of the runs")
    add("--total-steps", type=int, default=1_000_000, help="of each run of kl")
    add("--num-updates", type=int, default=1000, help="of each run of game")
    add("--num-envs", type=int, default=2048, help="episodes in an update of game")
    add("--runs", type=Path, nargs="+", default=[], help="folders of runs of SMAX, for wins")
    add("--episodes", type=int, default=256, help="of each seed, for wins")
    add("--repeats", type=int, default=9, help="turns of speed")
    return parser


def main() -> None:
    """Prints the table of a part."""
    args = build_parser().parse_args()
    cache_compilations()
    for line in PARTS[args.part](args):
        print(line, flush=True)


if __name__ == "__main__":
    main()
