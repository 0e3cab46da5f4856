"""The one draw loop: whoever draws from an image draws what `predict` draws."""

import dataclasses

import numpy as np
import pytest
import torch

from diffuseg.data.batches import Batches
from diffuseg.data.dataset import load_image, open_dataset
from diffuseg.data.synthetic import make_dataset
from diffuseg.inference.sampling import SamplingOptions, prepare
from diffuseg.train.validate import Validation, by_mask
from tests.inference.oracle import Oracle, make_model


class Watched(Oracle):
    """Remembers its seeds, and the type of the networks while it draws."""

    def __init__(self, plan, config):
        super().__init__(plan, config)
        self.seeds, self.autocast, self.weight = [], [], torch.nn.Parameter(torch.zeros(()))

    def draw(self, image, seeds, **options):
        options["steps"] = options["steps"] or self.default_steps
        for seed in seeds:
            self.seeds.append(seed)
            self.autocast.append(torch.is_autocast_enabled("cpu"))
            yield from super().draw(image, [seed], **options)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return open_dataset(make_dataset(tmp_path_factory.mktemp("made") / "data", cases=3, shape=(9, 8, 7)))


def watched(data, **changes):
    return make_model(noise=0.5, method=Watched, labels=data.labels, **changes)


def test_a_case_of_a_data_set_has_the_draws_of_its_file(data):
    model, case = watched(data, spacing=(1.5, 1.5, 1.5)), data.cases[0]
    options = SamplingOptions(draws=3, seed=4)
    own = model.prepare(Batches(data, [case.id], model.plan).whole(case.id), options)
    file = model.prepare(load_image(data, case), options)
    assert own.seeds == file.seeds == tuple(model.predict(case.images, options).provenance["seeds"])
    for a, b in zip(own.draw(), file.draw(), strict=True):
        assert torch.equal(a, b) and own.to_native(a).shape[1:] == load_image(data, case).shape


def test_draws_are_those_of_their_number_alone(data):
    model, image = watched(data), load_image(data, data.cases[0])
    every = list(model.prepare(image, SamplingOptions(draws=5)).draw())
    some = list(model.prepare(image, SamplingOptions(draws=5), indices=[3, 1]).draw())
    assert torch.equal(some[0], every[3]) and torch.equal(some[1], every[1])


def test_the_networks_have_the_models_precision_and_whoever_takes_the_draws_has_not(data):
    model = watched(data)
    low = dataclasses.replace(model.precision, dtype=torch.bfloat16)
    image = load_image(data, data.cases[0])
    draws = prepare(model.method, image, SamplingOptions(draws=2), model.device, low)
    outside = [torch.is_autocast_enabled("cpu") for _ in draws.draw()]
    assert model.method.autocast == [True, True] and outside == [False, False]
    list(model.prepare(image, SamplingOptions(draws=1)).draw())
    assert model.method.autocast[-1] is False


def test_validation_scores_the_first_draw_that_predict_would_make(data):
    model = watched(data)
    cases = [case.id for case in data.cases]
    result = by_mask(model.method, Batches(data, cases, model.plan), Validation(data, cases, model.plan, 7, 0))
    drawn, first = list(model.method.seeds), []
    for case in data.cases:
        first += model.predict(case.images, draws=4, seed=7).provenance["seeds"]
    assert drawn == first and result.cases == 3


def test_options_are_a_value_and_keywords_change_them(data):
    model, image = watched(data), load_image(data, data.cases[0])
    options = SamplingOptions(draws=2, seed=3)
    same, other = model.predict(image, options), model.predict(image, options, seed=4)
    np.testing.assert_array_equal(same.probability, model.predict(image, draws=2, seed=3).probability)
    assert other.provenance["seed"] == 4 and (other.probability != same.probability).any()
