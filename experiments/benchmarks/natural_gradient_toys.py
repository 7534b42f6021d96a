"""Compares the natural gradient with Adam on two toys: a distilled policy, and a language model.

The distilled policy is a small network that learns to act like a trained policy. The language model
learns to sort three digits. It learns from rewards as in GRPO (Shao et al. 2024, arXiv:2402.03300).
Both methods have the same number of settings. Other seeds than those of the table choose the best
setting.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import trpo_jax
from trpo_jax import Categorical, natural_gradient
from trpo_jax.algorithms import trpo
from trpo_jax.analysis.statistics import mean_interval
from trpo_jax.cli.command_line import Parser, cache_compilations, user_errors
from trpo_jax.rollout import rollout, start_episodes
from trpo_jax.running.evaluation import evaluate
from trpo_jax.running.settings import require_at_least

TUNING_SEEDS = 2  # for each setting
GROUP = 8  # answers for each prompt
ARROW, LENGTH = 10, 7  # a text is three digits, an arrow, three digits

Settings = dict[str, float]


class Method(NamedTuple):
    """A method and its settings.

    Attributes:
        name: name in the table.
        run: `(key, **settings) -> result`. It is compiled and timed.
        settings: settings to try.
        describe: `(result, key) -> scalars by name`, the columns of the table.
    """

    name: str
    run: Callable[..., Any]
    settings: list[Settings]
    describe: Callable[[Any, Any], dict[str, Any]] = lambda result, key: result


def main(argv: Sequence[str] | None = None) -> int:
    """Runs both toys and prints their tables."""
    words = list(sys.argv[1:] if argv is None else argv)
    with user_errors():
        args = build_parser().parse_args(words)
        require_at_least(seeds=(args.seeds, 1), scale=(args.scale, 1))
    cache_compilations()
    command = " ".join(
        ["python3 -m uv run", "experiments/benchmarks/natural_gradient_toys.py", *words]
    )
    print("\n".join(["```", command, "```"]))
    for line in table_lines("A distilled policy", "kl", distillation(args.scale), args.seeds):
        print(line, flush=True)
    for prompts, updates in ((16, 60), (64, 30)):
        title = f"A language model, {prompts} prompts of {GROUP} answers, {updates} updates"
        methods = language_model(prompts, max(2, updates // args.scale))
        for line in table_lines(title, "wrong", methods, args.seeds):
            print(line, flush=True)
    return 0


def build_parser() -> Parser:
    """Returns the parser of the command line."""
    parser = Parser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    help_text = "number of seeds in the tables (default: 5)"
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help=help_text)
    help_text = "divide the length of all training by this number, for a quick try (default: 1)"
    parser.add_argument("--scale", type=int, default=1, metavar="N", help=help_text)
    return parser


def table_lines(title: str, score: str, methods: Sequence[Method], num_seeds: int) -> Iterator[str]:
    """Yields the table of a toy. Each method uses its setting with the lowest mean of `score`."""
    yield from ("", f"## {title}", "")
    for index, method in enumerate(methods):
        program = jax.jit(method.run).lower(jax.random.key(0), **method.settings[0]).compile()
        measured = partial(measure, program, jax.jit(method.describe))
        trials = [measured(x, 1000, TUNING_SEEDS) for x in method.settings]
        best = int(np.argmin([np.mean(x[score]) for x in trials]))
        found = measured(method.settings[best], 0, num_seeds)
        if index == 0:
            yield "| method | best setting | " + " | ".join(found) + " |"
            yield "| --- | --- |" + " ---: |" * len(found)
        chosen = ", ".join(f"{name} {x:g}" for name, x in method.settings[best].items())
        cells = [method.name, f"{chosen}, of {len(trials)}", *map(spread, found.values())]
        yield "| " + " | ".join(cells) + " |"


def measure(
    program: Callable[..., Any],
    describe: Callable[..., dict[str, Any]],
    settings: Settings,
    first: int,
    count: int,
) -> dict[str, np.ndarray]:
    """Returns the scalars and the seconds of runs with `count` seeds, arrays `[count]` by name."""
    found = []
    for seed in range(first, first + count):
        started = time.perf_counter()
        result = jax.block_until_ready(program(jax.random.key(seed), **settings))
        seconds = time.perf_counter() - started
        found.append({**describe(result, jax.random.key(seed)), "seconds": seconds})
    return {name: np.array([float(x[name]) for x in found]) for name in found[0]}


def spread(values: np.ndarray) -> str:
    """Returns the mean over seeds and its 95 % t interval, as text."""
    if len(values) < 3:
        return f"{values.mean():.3g}"
    low, high = mean_interval(values)
    return f"{values.mean():.3g} [{low:.3g}, {high:.3g}]"


def grid(**values: Sequence[float]) -> list[Settings]:
    """Returns all combinations of the given values."""
    settings: list[Settings] = [{}]
    for name, several in values.items():
        settings = [{**x, name: value} for x in settings for value in several]
    return settings


def distillation(scale: int) -> tuple[Method, ...]:
    """Returns methods that distil a policy of CartPole into a network with four hidden units."""
    config = trpo.Config(num_envs=16, num_steps=128, hidden_sizes=(32,), max_kl=0.05)
    run = trpo_jax.train("CartPole-v1", config, seeds=1, total_steps=24_576, progress=False)
    actor = run.policy().actor
    teacher = lambda observations: run.algorithm.policy(actor, (), observations)[1]
    act = lambda key, observations: teacher(observations).sample(key)
    episodes = start_episodes(run.env, jax.random.key(0), num_envs=32)
    _, seen = jax.jit(lambda e: rollout(run.env, act, jax.random.key(1), e, num_steps=64))(episodes)
    observations = seen.observation.reshape(-1, *seen.observation.shape[2:])
    target = teacher(observations)
    model = nn.Sequential([nn.Dense(4), nn.tanh, nn.Dense(2)])
    distribution_fn = lambda params: Categorical(model.apply(params, observations))
    loss_fn = lambda params: jnp.mean(target.kl(distribution_fn(params)))

    def train(make_optimizer, num_steps, key, **settings):
        optimizer = optax.with_extra_args_support(make_optimizer(**settings))
        params = model.init(key, observations)

        def step(carry, _):
            params, state = carry
            gradients = jax.grad(loss_fn)(params)
            updates, state = optimizer.update(
                gradients, state, params, distribution_fn=distribution_fn
            )
            return (optax.apply_updates(params, updates), state), None

        start = params, optimizer.init(params)
        (params, _), _ = jax.lax.scan(step, start, length=max(2, num_steps // scale))
        return params

    def describe(params, key):
        act = lambda key, carry, seen: (carry, Categorical(model.apply(params, seen)).mode())
        returns = evaluate(run.env, act, key, 32).returns
        return {"kl": loss_fn(params), "return": jnp.mean(returns)}

    natural = partial(natural_gradient, max_kl=0.1, learning_rate=1.0)
    return (
        Method(
            "natural gradient, 50 steps",
            partial(train, natural, 50),
            grid(damping=(1e-4, 1e-3, 1e-2, 1e-1)),
            describe,
        ),
        Method(
            "Adam, 200 steps",
            partial(train, optax.adam, 200),
            grid(learning_rate=(0.01, 0.03, 0.1, 0.3)),
            describe,
        ),
    )


class Transformer(nn.Module):
    """A causal transformer of two layers. It maps tokens to distributions of the next tokens."""

    @nn.compact
    def __call__(self, tokens):
        """Returns the distribution of each next token."""
        positions = self.param("positions", nn.initializers.normal(0.1), (LENGTH, 32))
        x = nn.Embed(ARROW + 1, 32)(tokens) + positions[: tokens.shape[-1]]
        for _ in range(2):
            mask, attention = nn.make_causal_mask(tokens), nn.MultiHeadDotProductAttention(2)
            x = x + attention(nn.LayerNorm()(x), mask=mask)
            x = x + nn.Dense(32)(nn.gelu(nn.Dense(64)(nn.LayerNorm()(x))))
        return Categorical(nn.Dense(ARROW + 1)(nn.LayerNorm()(x)))


def language_model(num_prompts: int, num_updates: int) -> tuple[Method, ...]:
    """Returns methods that learn to sort digits from rewards."""
    model = Transformer()
    pretrained = pretrain(model)
    is_answer = jnp.arange(LENGTH - 1) >= 3
    weights = jnp.broadcast_to(is_answer, (num_prompts * GROUP, LENGTH - 1)).astype(jnp.float32)

    def mean(x):
        return jnp.sum(weights * x) / jnp.sum(weights)

    def collect(params, key):
        """Returns answers, their advantages, and the mean reward."""
        prompt_key, answer_key = jax.random.split(key)
        prompts = jnp.repeat(draw_prompts(prompt_key, num_prompts), GROUP, axis=0)
        tokens = jnp.pad(prompts, ((0, 0), (0, 3)))
        for i, token_key in enumerate(jax.random.split(answer_key, 3)):
            drawn = model.apply(params, tokens[:, :-1]).sample(token_key)
            tokens = tokens.at[:, 4 + i].set(drawn[:, 3 + i])
        right = jnp.all(tokens[:, 4:] == jnp.sort(tokens[:, :3], axis=1), axis=1)
        rewards = right.astype(jnp.float32).reshape(num_prompts, GROUP)
        off = rewards - jnp.mean(rewards, axis=1, keepdims=True)
        advantages = off / (jnp.std(rewards, axis=1, keepdims=True) + 1e-4)
        return tokens, advantages.reshape(-1, 1), jnp.mean(rewards)

    def learn(optimizer, penalty, steps_of_batch, key):
        """Returns the share of wrong answers late in training, and the mean KL of an update."""

        def update(carry, key):
            old_params, state = carry
            tokens, advantages, reward = collect(old_params, key)
            distribution_fn = lambda params: model.apply(params, tokens[:, :-1])
            old, log_probs = distribution_fn(old_params), lambda d: d.log_prob(tokens[:, 1:])
            kl_fn = lambda params: mean(old.kl(distribution_fn(params)))

            def loss_fn(params):
                ratios = jnp.exp(log_probs(distribution_fn(params)) - log_probs(old))
                loss = -mean(ratios * advantages)
                return loss + penalty * kl_fn(params) if steps_of_batch > 1 else loss

            def step(carry, _):
                params, state = carry
                updates, state = optimizer.update(
                    jax.grad(loss_fn)(params),
                    state,
                    params,
                    distribution_fn=distribution_fn,
                    value_fn=loss_fn,
                    weights=weights,
                )
                return (optax.apply_updates(params, updates), state), None

            (params, state), _ = jax.lax.scan(step, carry, length=steps_of_batch)
            return (params, state), (reward, kl_fn(params))

        keys = jax.random.split(key, num_updates)
        start = pretrained, optimizer.init(pretrained)
        _, (rewards, kl) = jax.lax.scan(update, start, keys)
        late = rewards[-max(1, num_updates // 6) :]
        return {"wrong": 1 - jnp.mean(late), "KL of an update": jnp.mean(kl)}

    def natural(key, max_kl, momentum):
        optimizer = natural_gradient(max_kl, 1.0, momentum=momentum, line_search_steps=5)
        return learn(optimizer, 0.0, 1, key)

    def adam(key, learning_rate, penalty):
        optimizer = optax.with_extra_args_support(optax.adam(learning_rate))
        return learn(optimizer, penalty, 4, key)

    return (
        Method("natural gradient", natural, grid(max_kl=(0.01, 0.03, 0.06), momentum=(0.0, 0.9))),
        Method(
            "Adam, 4 steps of a batch",
            adam,
            grid(learning_rate=(3e-4, 6e-4, 1e-3), penalty=(0.1, 1.0)),
        ),
    )


def draw_prompts(key: Any, count: int) -> Any:
    """Returns prompts `[count, 4]`: three digits and an arrow."""
    digits = jax.random.randint(key, (count, 3), 0, 10)
    return jnp.pad(digits, ((0, 0), (0, 1)), constant_values=ARROW)


@partial(jax.jit, static_argnums=0)
def pretrain(model: Transformer) -> Any:
    """Returns the parameters of a model that repeats the digits of a prompt in random order."""
    optimizer = optax.adam(5e-3)

    def step(carry, key):
        params, state = carry
        prompts = draw_prompts(key, 64)
        answers = jax.random.permutation(key, prompts[:, :3], axis=1, independent=True)
        tokens = jnp.concatenate([prompts, answers], axis=1)
        gradients = jax.grad(
            lambda params: (
                -jnp.mean(model.apply(params, tokens[:, :-1]).log_prob(tokens[:, 1:])[:, 3:])
            )
        )(params)
        updates, state = optimizer.update(gradients, state)
        return (optax.apply_updates(params, updates), state), None

    params = model.init(jax.random.key(0), jnp.zeros((1, LENGTH - 1), jnp.int32))
    keys = jax.random.split(jax.random.key(1), 250)
    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), keys)
    return params


if __name__ == "__main__":
    sys.exit(main())
