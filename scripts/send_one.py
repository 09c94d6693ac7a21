#!/usr/bin/env python3
"""Sends one message: send_one.py PORT BYTES. Prints 250, or code and enhanced code of what refused it."""
import smtplib
import sys

port, size = int(sys.argv[1]), int(sys.argv[2])


def short(code, text):
    words = text.decode(errors="replace").split()
    return f"{code} {words[0]}" if words else str(code)


try:
    client = smtplib.SMTP("127.0.0.1", port, timeout=30)
    client.ehlo("client.test")
    for reply in (client.mail("probe@sender.test"), client.rcpt("probe@receiver.test")):
        if reply[0] != 250:
            print(short(*reply))
            sys.exit()
    line = b"x" * 70 + b"\r\n"
    code, text = client.data(b"Subject: probe\r\n\r\n" + line * (size // len(line)))
    print(code if code == 250 else short(code, text))
except smtplib.SMTPResponseException as refused:
    print(short(refused.smtp_code, refused.smtp_error))
except OSError as error:
    print(f"none {error}")
