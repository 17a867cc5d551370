"""Training cria by llamita's one loop: `python -m recipes.cria.train recipes/cria.toml` makes `llamita/cria`.

Stopped and started again, it goes on from its last checkpoint exactly: the rows of a step depend on its number alone.
"""

import argparse
from pathlib import Path

from llamita.train import state
from llamita.train.session import INSIDE
from llamita.train.stopping import stopped_by_signals
from recipes.cria.export import export
from recipes.cria.recipe import read_recipe
from recipes.cria.session import begin, prepare_tokenizer


def main() -> None:
    """Train, log every step to the run's folder, and write the finished model."""
    parser = argparse.ArgumentParser(description="Train cria from its recipe; resumes by itself.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--steps", type=int, help="a budget other than the recipe's")
    parser.add_argument("--run", type=Path, help="a folder for the training other than the recipe's")
    parser.add_argument("--output", type=Path, help="a folder for the finished model other than the recipe's")
    arguments = parser.parse_args()
    recipe = read_recipe(arguments.recipe, steps=arguments.steps, run=arguments.run, output=arguments.output)
    with state.locked(recipe.run / INSIDE), stopped_by_signals() as should_stop:
        session = begin(recipe)
        for metrics in session.steps(should_stop):
            if metrics.held_out_loss is not None:
                print(f"step {metrics.step}: loss {metrics.loss:.3f}, held out {metrics.held_out_loss:.3f}", flush=True)
    if session.run.step == session.run.steps:
        print(f"wrote {export(session.run.model, prepare_tokenizer(recipe), recipe)}")


if __name__ == "__main__":
    main()
