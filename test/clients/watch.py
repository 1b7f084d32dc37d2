#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""watch.py SHARE USER%PASSWORD DIR FILTER LENGTH TREE: impacket watches a directory and prints what it is told, as
smbclient's notify does. It asks again and again, with the same completion filter and length."""

import sys

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


def main(share, login, directory, completion_filter, length, tree):
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
        request["Flags"] = int(tree)
        request["OutputBufferLength"] = int(length)
        request["FileID"] = file_id
        request["CompletionFilter"] = int(completion_filter, 0)
        packet = server.SMB_PACKET()
        packet["Command"] = smb2.SMB2_CHANGE_NOTIFY
        packet["TreeID"] = tid
        packet["CreditCharge"] = max(1, -(-int(length) // 65536))
        packet["CreditRequestResponse"] = 127
        packet["Data"] = request
        answer = server.recvSMB(server.sendSMB(packet))
        if answer["Status"] == ENUM_DIR:
            print("NOTIFY_ENUM_DIR", flush=True)
        elif answer["Status"] != 0:
            sys.exit(f"CHANGE_NOTIFY ends with {answer['Status']:#x}")
        else:
            for action, name in records(smb2.SMB2ChangeNotify_Response(answer["Data"])):
                print(f"{action:04x} {name}", flush=True)


main(*sys.argv[1:])
