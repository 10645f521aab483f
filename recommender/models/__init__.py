import logging

# peft imports bitsandbytes wherever it is installed, which then tells every process of a CPU kernel that it
# cannot download, and with int8 of every layer's cast in every call.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
