"The text-to-speech task with a trap."
from trapped import trapped

from workbench.tasks.tts import task as tts

task = trapped(tts.task)
