"""Every error this kit raises on purpose.

EdgeError                exit 1, the message is one line that says what to do
+-- UsageError           exit 2: a command line or setting that cannot be meant
|   +-- SettingsError    exit 2: node.yaml, with the path of the setting
+-- WeightsError         a weight file that is missing or has another hash
+-- BundleError          a model bundle that cannot be trusted
+-- BackendError         a runtime that is missing or refuses the model
+-- DeviceError          an accelerator that is lost to this process: only a new process gets it back
+-- SourceError          a camera, file, folder or address that gives no frames
|   +-- PictureError     one picture file that cannot be read (sources/images.py)
+-- BrokerError          readings that the broker did not take in time
+-- OutboxError          the file that keeps the readings
+-- DataError            a data set that does not have the layout it claims
+-- Refused              a release that must not be installed (update/release.py)
+-- UnknownRoomError     exit 3: nothing is known of a room that is to be deleted (watch/forget.py)
+-- NodeRefused          exit 3: a node that was asked and said no (watch/ask.py)
+-- Unanswered           exit 4: a node that was asked and said nothing (watch/ask.py)
+-- RolledBack           a release that did not stay healthy (update/run.py)
"""

from edge.base.addresses import redact


class EdgeError(Exception):
    """Base of all our errors; `exit_code` is what the command line returns."""

    exit_code = 1

    def __init__(self, message: str, public: str = "") -> None:
        """Repeated from a file or a device, a message may hold line ends and what steers a terminal:
        they become spaces and question marks; of an address, scheme and host stay.

        public: the same with no name, path or address at all, for messages that leave this machine."""
        line = redact(" ".join(message.split()))
        super().__init__("".join(c if c.isprintable() else "?" for c in line))
        self.public = redact(" ".join(public.split()))


class UsageError(EdgeError):
    exit_code = 2


class SettingsError(UsageError):
    pass


class WeightsError(EdgeError):
    pass


class BundleError(EdgeError):
    pass


class BackendError(EdgeError):
    pass


class DeviceError(EdgeError):
    pass


class SourceError(EdgeError):
    pass


class BrokerError(EdgeError):
    pass


class OutboxError(EdgeError):
    pass


class DataError(EdgeError):
    pass
