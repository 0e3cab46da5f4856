"""Where the curves go besides log.csv, with modules in the place of the services that do what these document."""

import csv
import sys
from types import ModuleType, SimpleNamespace

import pytest

from diffuseg.errors import UserError
from diffuseg.train import loop
from tests.train.tiny import call, options, refused, settings


class Service(ModuleType):
    """Either service: it keeps what it is told, as (name, step, value)."""

    def __init__(self, name):
        super().__init__(name)
        self.begun, self.told, self.ended, self.id = [], [], [], "run-7"
        self.info = SimpleNamespace(run_id="run-7")

    def init(self, id, resume, name, dir, config):
        self.begun.append((id, name, config))
        return self

    def start_run(self, run_id, run_name):
        self.begun.append((run_id, run_name, {}))
        return self

    def log_params(self, settings):
        self.begun[-1][2].update(settings)

    def log(self, values, step):
        self.told += [(name, step, value) for name, value in values.items()]

    log_metrics = log

    def finish(self, exit_code):
        self.ended.append(exit_code == 0)

    def end_run(self, status):
        self.ended.append(status == "FINISHED")


@pytest.fixture(params=["wandb", "mlflow"])
def service(request, monkeypatch, quick):
    made = Service(request.param)
    monkeypatch.setitem(sys.modules, request.param, made)
    return made


def test_a_service_is_told_what_log_csv_has_and_how_not_on_what(data, tmp_path, service):
    out = tmp_path / "run"
    done = call(*options(data, out, steps=3), "--log-to", service.__name__, "--set", "train.log_every=1")
    assert done.exit_code == 0, done.output
    with (out / "log.csv").open() as file:
        rows = [(key, int(row["step"]), value) for row in csv.DictReader(file) for key, value in row.items() if value]
    kept = {(key, step, value) for key, step, value in rows if key not in ("step", "seconds")}
    assert {(key, step, str(value)) for key, step, value in service.told} == kept and len(kept) > 6
    ((key, name, told),) = service.begun
    assert key is None and name == f"{tmp_path.name}/run" and service.ended == [True]
    assert told["method"] == "unet" and told["train.log_every"] == 1 and str(data) not in str(told)


def test_a_run_that_is_gone_on_with_is_the_same_run_there(data, tmp_path, service):
    for steps, more in ((2, {}), (4, {"resume": True})):
        loop.train(settings(data, tmp_path / "run", steps=steps, log_to=[service.__name__], **more))
    assert [key for key, _, _ in service.begun] == [None, "run-7"] and service.ended == [True, True]


def test_a_service_that_fails_is_left_out_and_stops_nothing(data, tmp_path, service, monkeypatch):
    def fails(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(service, "log", fails)
    monkeypatch.setattr(service, "log_metrics", fails)
    done = call(*options(data, tmp_path / "run", steps=3), "--log-to", service.__name__)
    assert done.exit_code == 0, done.output
    assert " ".join(done.stderr.split()).count("no route to host") == 1 and service.ended == []


def test_a_service_that_cannot_begin_is_a_refusal(data, tmp_path, service, monkeypatch):
    monkeypatch.setattr(service, "init", lambda **_: 1 / 0)
    monkeypatch.setattr(service, "start_run", lambda **_: 1 / 0)
    refused(call(*options(data, tmp_path / "run"), "--log-to", service.__name__), "cannot begin", "ZeroDivisionError")


def test_a_training_that_ends_in_an_error_is_a_failed_run(data, tmp_path, service, monkeypatch):
    monkeypatch.setattr(loop, "validate", lambda *_: (_ for _ in ()).throw(UserError("broken")))
    with pytest.raises(UserError, match="broken"):
        loop.train(settings(data, tmp_path / "run", log_to=[service.__name__]))
    assert service.ended == [False]


def test_what_is_unknown_or_not_installed_is_refused_before_any_work(data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    refused(call(*options(data, tmp_path / "run"), "--log-to", "wandb"), "not installed", "diffuseg[wandb]")
    refused(call(*options(data, tmp_path / "run"), "--log-to", "csv"), "Known: wandb, mlflow")
    assert not (tmp_path / "run").exists()


def test_an_object_of_ones_own_can_be_a_logger(data, tmp_path, quick):
    class Mine:
        def __init__(self):
            self.steps, self.ends = [], []

        def log(self, values, step):
            self.steps.append(step)

        def flush(self):
            pass

        def close(self, failed):
            self.ends.append(failed)

    mine = Mine()
    loop.train(settings(data, tmp_path / "run", "unet", "train.log_every=1", steps=2, log_to=[mine]))
    assert mine.steps == [1, 1, 2, 2]  # a step, a validation
    assert mine.ends == [False]
