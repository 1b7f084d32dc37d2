#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""watch.py SHARE USER%PASSWORD DIR FILTER:LENGTH:TREE...: impacket watches a directory and prints what it is told, as
smbclient's notify does. It asks again and again, with the same completion filter and length. Several watches have a
connection each, and a line of theirs begins with what they ask for."""

import os
import sys
import threading

from impacket import smb3structs as smb2
from impacket.smbconnection import SMBConnection

ENUM_DIR = 0x0000010C
SHARE_ALL = 7


def records(response):
    """Yields action and name of each record, MS-FSCC 2.7.1."""
    buffer = response["Buffer"]
    while True:
        info = smb2.FILE_NOTIFY_INFORMATION(buffer)
        yield info["Action"], info["FileName"][: info["FileNameLength"]].decode("utf-16le")
        if info["NextEntryOffset"] == 0:
            return
        buffer = buffer[info["NextEntryOffset"] :]


def watch(share, login, directory, spec, prefix):
    completion_filter, length, tree = (int(s, 0) for s in spec.split(":"))
    user, password = login.split("%")
    connection = SMBConnection("127.0.0.1", "127.0.0.1", timeout=600)
    connection.login(user, password)
    server = connection.getSMBServer()
    tid = connection.connectTree(share)
    file_id = server.create(
        tid, directory.replace("/", "\\"), smb2.FILE_LIST_DIRECTORY | smb2.FILE_READ_ATTRIBUTES, SHARE_ALL,
        smb2.FILE_DIRECTORY_FILE, smb2.FILE_OPEN, 0,
    )
    while True:
        request = smb2.SMB2ChangeNotify()
        request["Flags"] = tree
        request["OutputBufferLength"] = length
        request["FileID"] = file_id
        request["CompletionFilter"] = completion_filter
        packet = server.SMB_PACKET()
        packet["Command"] = smb2.SMB2_CHANGE_NOTIFY
        packet["TreeID"] = tid
        packet["CreditCharge"] = max(1, -(-length // 65536))
        packet["CreditRequestResponse"] = 127
        packet["Data"] = request
        answer = server.recvSMB(server.sendSMB(packet))
        if answer["Status"] == ENUM_DIR:
            print(prefix + "NOTIFY_ENUM_DIR\n", end="", flush=True)
        elif answer["Status"] != 0:
            raise RuntimeError(f"CHANGE_NOTIFY ends with {answer['Status']:#x}")
        else:
            told = (f"{prefix}{action:04x} {name}\n" for action, name in records(smb2.SMB2ChangeNotify_Response(answer["Data"])))
            print("".join(told), end="", flush=True)


def run(*args):
    try:
        watch(*args)
    except BaseException as e:
        print(f"{args[-1]}{e}", flush=True)
        os._exit(1)


def main(share, login, directory, *specs):
    for spec in specs:
        threading.Thread(target=run, args=(share, login, directory, spec, f"{spec} " if len(specs) > 1 else "")).start()


main(*sys.argv[1:])
