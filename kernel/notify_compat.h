/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What differs between the kernel series that notify.c is built for, as the
 * newest has it. What ksmbd itself is to do differently is in hooks-*.patch.
 */

#ifndef __KSMBD_NOTIFY_COMPAT_H__
#define __KSMBD_NOTIFY_COMPAT_H__

#include <linux/version.h>

#include "smbacl.h"

#if LINUX_VERSION_CODE < KERNEL_VERSION(7, 3, 0)
/* Since 7.3 it is told how strict to be; before, it never was. */
#define smb_check_perm_dacl(conn, path, pdaccess, daccess, uid, strict) \
	smb_check_perm_dacl(conn, path, pdaccess, daccess, uid)
#endif

#endif /* __KSMBD_NOTIFY_COMPAT_H__ */
