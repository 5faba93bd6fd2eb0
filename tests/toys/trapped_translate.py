"The translation task with a trap."
from trapped import trapped

from workbench.tasks.translate import task as translate

task = trapped(translate.task)
