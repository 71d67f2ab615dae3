"""Arguments of a class inside another one, on the command line."""

import yaml

CONFIG = """
model: {class_path: rl_lightning.SFT, init_args: {model: nowhere}}
data:
  class_path: rl_lightning.CompletionDataModule
  init_args:
    prompts:
      class_path: rl_lightning.StringTasks
      init_args: {task: copy, size: 20, length: 6, shortest: 3}
"""


def config_file(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(CONFIG)
    return str(file)


def test_null_leaves_the_rest_of_the_class_alone(typed, tmp_path):
    words = ("fit", "--config", config_file(tmp_path), "--data.prompts.init_args.shortest", "null")
    printed = yaml.safe_load(typed(*words, "--print_config", status=0))
    prompts = printed["data"]["init_args"]["prompts"]
    assert prompts["class_path"] == "rl_lightning.StringTasks"
    assert prompts["init_args"]["shortest"] is None
    assert prompts["init_args"]["length"] == 6


def test_an_argument_that_does_not_exist_is_no_list_of_two_prompts(typed, tmp_path):
    said = typed("fit", "--config", config_file(tmp_path), "--data.prompts.sise", "9", status=2)
    assert "data.prompts: StringTasks has no argument 'sise'; did you mean 'size'?" in said


def test_a_wrong_value_is_told_by_the_argument_it_was_meant_for(typed, tmp_path):
    said = typed(
        "fit", "--config", config_file(tmp_path), "--data.prompts.init_args.size", "x", status=2
    )
    assert "data.prompts.size: expected int, not x" in said


def test_a_list_is_still_a_list(typed, tmp_path):
    words = ("fit", "--config", config_file(tmp_path), "--data.prompts", "[one, two]")
    printed = yaml.safe_load(typed(*words, "--print_config", status=0))
    assert printed["data"]["init_args"]["prompts"] == ["one", "two"]
