"The workbench. `import workbench` is cheap: torch and transformers load when a run or a model is asked for."
__version__ = "0.1.0"
__all__ = ["train", "resume", "load", "use", "demo"]


def train(
    config: str,  # a preset's name or the path of a YAML file
    overrides: str = "",  # "a.b=value c.d=value"
    task_from: str = "",  # a module or a .py file that may be the configuration's task
    **how,  # run_dir, nproc: see `workbench.lab.run.launch.train`
):
    "Train in a process of its own and wait for it; returns the run folder. Raises `Refused` or `Failed`."
    from workbench.core.config.modules import permit
    from workbench.lab.run.launch import train

    permit(task_from)
    return train(config, overrides, **how)


def resume(
    run: str,  # a run folder
    task_from: str = "",  # a module or a .py file that may be the run's task
    **how,  # overrides, nproc: see `workbench.lab.run.launch.resume`
):
    "Continue a run from its last checkpoint; returns the started `Run`, see `workbench.lab.run.launch.wait`."
    from workbench.core.config.modules import permit
    from workbench.lab.run.launch import resume

    permit(task_from)
    return resume(run, **how)


def load(
    run: str,  # a run folder
    which: str = "best",  # best | last | a checkpoint's name
    task_from: str = "",  # a module or a .py file that may be the run's task
):
    "The nets (evaluation mode) and the data of a trained run: `nets, data = workbench.load(run, 'best')`."
    from workbench.core.config.modules import permit
    from workbench.core.setup.resume import load

    permit(task_from)
    return load(run, which)


def use(
    run: str,  # a run folder
    *given: str,  # texts or paths, as the run's task takes them; a .txt file: its lines
    overrides: str = "",  # how it is used: "speak.speed=0.9", "generate.num_beams=1"
    checkpoint: str = "best",  # best | last | a checkpoint's name
    seed: int | None = None,  # of what is drawn at random; None: the run's
    task_from: str = "",  # a module or a .py file that may be the run's task
):
    """What a trained run makes of texts or files, an answer each as soon as it is made.

    Raises `Refused` for what is wrong with the run; an input that cannot be used is an answer with
    `refused`."""
    from workbench.core.config.modules import permit
    from workbench.lab.use import use

    permit(task_from)
    return use(run, *given, overrides=overrides, checkpoint=checkpoint, seed=seed)


def demo(
    run: str,  # a run folder
    task_from: str = "",  # a module or a .py file that may be the run's task
    **how,  # overrides, checkpoint, port, seed, options: see `workbench.lab.demo.serve.demo`
):
    "A page of this machine on which a trained run is used, under the cell of a notebook. Raises `Refused`."
    from workbench.core.config.modules import permit
    from workbench.lab.demo.serve import demo

    permit(task_from)
    return demo(run, **how)
