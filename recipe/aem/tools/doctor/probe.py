"""What a process of a run sees of the plug-in. Never imported: `plugin.py` runs this text in a fresh interpreter.

It imports nothing from this package: it inspects processes in which `recipe` may be hidden, and Ray sends functions of
a main module by value. `python -c TEXT` looks for modules where `python -m verl.trainer.main_ppo` does.
"""

import json
import os
import sys

MARK = "AEM-DOCTOR "


def look():
    """Return facts about this process, after importing what verl's trainer and its workers import."""
    import importlib
    import importlib.metadata
    import os
    import sys

    facts = {
        "plugins": os.environ.get("VERL_USE_EXTERNAL_PLUGINS", ""),
        "modules": os.environ.get("VERL_USE_EXTERNAL_MODULES", ""),
        "platform": os.environ.get("VERL_PLATFORM", ""),
        "error": "",
        "load_error": "",
        "entry_point": False,
        "loaded": False,
        "plugin_file": "",
        "recipes": [],
        "estimators": {},
        "loop": "",
        "wrapped": {},
    }
    # a regular package hides every namespace portion, wherever it is on the path
    for folder in sys.path:
        for hidden in (os.path.join("recipe", "__init__.py"), "recipe.py"):
            path = os.path.abspath(os.path.join(folder, hidden))
            if os.path.isfile(path) and path not in facts["recipes"]:
                facts["recipes"].append(path)
    # whether the entry point is installed and verl can be imported
    points = importlib.metadata.entry_points(group="verl.plugins")
    facts["entry_point"] = any(point.value == "verl_aem.autoload" for point in points)
    try:
        importlib.import_module("verl")
        core = importlib.import_module("verl.trainer.ppo.core_algos")
        trainer = importlib.import_module("verl.trainer.ppo.v1.trainer_base")
        engine = importlib.import_module("verl.workers.engine.base")
        loops = importlib.import_module("verl.experimental.agent_loop.agent_loop")
    except Exception as error:
        facts["error"] = f"{type(error).__name__}: {error}"[:500]
        return facts
    # what verl loaded and registered by itself
    plugin = sys.modules.get("recipe.aem.plugin")
    facts["loaded"] = plugin is not None
    facts["plugin_file"] = str(getattr(plugin, "__file__", "") or "")
    # the function inside functools.partial
    facts["estimators"] = {
        str(name): getattr(getattr(function, "func", function), "__module__", "")
        for name, function in core.ADV_ESTIMATOR_REGISTRY.items()
    }
    facts["loop"] = str(loops._agent_loop_registry.get("environment", {}).get("_target_", ""))
    places = ((trainer.PPOTrainer, ("__init__", "_compute_advantage")), (engine.BaseEngine, ("train_batch",)))
    for owner, names in places:
        for name in names:
            wrapper = getattr(owner.__dict__.get(name), "_self_wrapper", None)
            facts["wrapped"][owner.__name__ + "." + name] = getattr(wrapper, "__module__", "")
    # if verl did not load the plug-in: the reason
    if not facts["loaded"]:
        try:
            importlib.import_module("verl_aem").load()
        except Exception as error:
            facts["load_error"] = f"{type(error).__name__}: {error}"[:500]
    return facts


def look_in_worker(folder):
    """Return the same facts from a worker of a small temporary Ray cluster, with verl's environment for it."""
    import ray
    from verl.trainer.constants_ppo import get_ppo_ray_runtime_env

    try:
        # `local`: never join a running cluster
        ray.init(
            address="local",
            num_cpus=1,
            num_gpus=0,
            include_dashboard=False,
            object_store_memory=80 << 20,
            logging_level=40,
            log_to_driver=False,
            runtime_env=get_ppo_ray_runtime_env(),
            _temp_dir=folder,
        )
        return ray.get(ray.remote(look).remote())
    except Exception as error:
        return {"ray_error": f"{type(error).__name__}: {error}"[:500]}
    finally:
        ray.shutdown()


if __name__ == "__main__":
    print(MARK + json.dumps({"here": look()}), flush=True)
    if len(sys.argv) > 1:
        os.environ.pop("RAY_ADDRESS", None)
        print(MARK + json.dumps({"worker": look_in_worker(sys.argv[1])}), flush=True)
