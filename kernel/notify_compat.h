/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What differs between the kernel series that our sources are built for. What
 * ksmbd itself has to do differently is in SERIES/hooks.patch.
 */

#ifndef __KSMBD_NOTIFY_COMPAT_H__
#define __KSMBD_NOTIFY_COMPAT_H__

#include <linux/slab.h>
#include <linux/version.h>

#include "connection.h"
#include "smbacl.h"

/* 6.12 has none. */
#ifndef kzalloc_obj
#define kzalloc_obj(obj, gfp)	kzalloc(sizeof(obj), gfp)
#endif

/* Releases of 6.12 before the longterm ones have one bit for it. */
#ifndef FMODE_FSNOTIFY_MASK
#define FMODE_FSNOTIFY_MASK	FMODE_NONOTIFY
#endif

#if KERNEL_VERSION(7, 2, 0) > LINUX_VERSION_CODE
#define file_basic_info	smb2_file_basic_info
#endif

/* As the transport's writev, which before 7.3 may send but a part. */
static inline int notify_writev(struct ksmbd_conn *conn, struct kvec *iov,
				int iov_cnt, int size, int msg_flags)
{
#if KERNEL_VERSION(7, 3, 0) > LINUX_VERSION_CODE
	int sent;

	conn->notify.msg_flags = msg_flags;
	sent = conn->transport->ops->writev(conn->transport, iov, iov_cnt, size,
					    false, 0);
	conn->notify.msg_flags = 0;
	return sent;
#else
	const struct ksmbd_transport_write tx = {
		.iov = iov, .iov_cnt = iov_cnt, .size = size,
		.msg_flags = msg_flags,
	};

	return conn->transport->ops->writev(conn->transport, &tx);
#endif
}

/* Whether the Windows ACL of @path grants @daccess to an open by @uid. */
static inline bool notify_dacl_grants(struct ksmbd_conn *conn,
				      const struct path *path, __le32 daccess,
				      int uid)
{
	__le32 granted = daccess;

#if KERNEL_VERSION(7, 2, 0) > LINUX_VERSION_CODE
	return !smb_check_perm_dacl(conn, path, &granted, daccess, uid);
#else
	return !smb_check_perm_dacl(conn, path, &granted, daccess, uid, false);
#endif
}

#endif /* __KSMBD_NOTIFY_COMPAT_H__ */
