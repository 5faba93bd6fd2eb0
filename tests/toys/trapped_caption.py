"The caption task with a trap."
from trapped import trapped

from workbench.tasks.caption import task as caption

task = trapped(caption.task)
