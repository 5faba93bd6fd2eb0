"The sign task with a trap."
from trapped import trapped

from workbench.tasks import sign

task = trapped(sign.task)
