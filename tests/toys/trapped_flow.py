"The flow task with a trap."
from trapped import trapped

from workbench.tasks import flow

task = trapped(flow.task)
