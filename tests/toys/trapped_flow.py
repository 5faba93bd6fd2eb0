"The flow task with a trap."
from trapped import trapped

from workbench.tasks.flow import task as flow

task = trapped(flow.task)
