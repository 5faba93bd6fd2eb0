"The text-to-speech task with a trap."
from trapped import trapped

from workbench.tasks import tts

task = trapped(tts.task)
