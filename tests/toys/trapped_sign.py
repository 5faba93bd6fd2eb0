"The sign task with a trap."
from trapped import trapped

from workbench.tasks.sign import task as sign

task = trapped(sign.task)
