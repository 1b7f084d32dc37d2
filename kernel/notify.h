/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * SMB2 CHANGE_NOTIFY for ksmbd, answered with the help of ksmbd-notifyd.
 *
 * A handle's first CHANGE_NOTIFY makes a watch, which lives until the handle
 * is closed. Each CHANGE_NOTIFY is a request of its handle's watch and is
 * parked without a thread. Watches and requests are handed to the daemon as
 * items (notify_netlink.c); the daemon completes requests.
 */

#ifndef __KSMBD_NOTIFY_H__
#define __KSMBD_NOTIFY_H__

#include <linux/list.h>
#include <linux/types.h>
#include <linux/workqueue.h>

#include "ksmbd_netlink.h"

struct dentry;
struct file;
struct iattr;
struct notify_told;
struct sk_buff;
struct smb2_hdr;
struct ksmbd_conn;
struct ksmbd_file;
struct ksmbd_inode;
struct ksmbd_notify_next;
struct ksmbd_notify_request;
struct ksmbd_session;
struct ksmbd_work;

/* CANCELs that are remembered for when their request has been decrypted. */
#define KSMBD_NOTIFY_MAX_CANCELLED	32

/**
 * struct ksmbd_notify_conn - what a connection owes its client
 * @id:		of no other connection
 * @send:	requests of which something is to be sent, in order
 * @work:	sends them, if nobody else does
 * @sending:	somebody does
 * @claimed:	a CANCEL does, see ksmbd_notify_cancelled()
 * @asks:	requests whose filesystem is, or is to be, asked before
 * @spent:	requests that are answered
 * @free:	frees them
 * @out:	the request of which something is being sent, of whoever does
 * @delay:	in jiffies, until @work tries again to
 * @rest:	the response to be written before any other, perhaps in part
 *		already: set by who is sending or under srv_mutex, cleared under
 *		that. An error if nothing may be written any more
 * @partial:	whether a part of it was, under srv_mutex
 * @stalled:	in jiffies, since when nothing could be written, or 0; under
 *		srv_mutex
 * @msg_flags:	for the transport, likewise
 * @bytes:	of change records that wait to be sent
 * @pending:	requests parked on the connection, under conn->request_lock
 * @cancelled:	MessageIds of the last CANCELs that found no request, likewise
 * @cancels:	how many CANCELs that was
 * @session:	SessionId of the last CANCEL of the oldest request, likewise
 * @async_id:	the last one given
 */
struct ksmbd_notify_conn {
	u64			id;
	struct list_head	send;
	struct delayed_work	work;
	bool			sending;
	bool			claimed;
	struct list_head	asks;
	struct list_head	spent;
	struct work_struct	free;
	struct ksmbd_notify_request *out;
	unsigned long		delay;
	struct ksmbd_work	*rest;
	bool			partial;
	unsigned long		stalled;
	int			msg_flags;
	size_t			bytes;
	unsigned int		pending;
	__le64			cancelled[KSMBD_NOTIFY_MAX_CANCELLED];
	unsigned int		cancels;
	__le64			session;
	int			async_id;
};

/**
 * struct ksmbd_notify_cause - what a request changes of a file's metadata
 * @entry:		for notify_cause.c while it runs
 * @begun:		when it began, in ns of CLOCK_MONOTONIC
 * @ended:		when it ended
 * @filter:		completion filter that is concerned
 * @thread:		the thread that changes it; 0 if nobody watches
 * @handle_bytes:	of @handle
 * @handle_type:	together a struct file_handle, see open_by_handle_at(2)
 * @handle:		of the file; longer ones only overlayfs has
 */
struct ksmbd_notify_cause {
	struct list_head	entry;
	u64			begun;
	u64			ended;
	u32			filter;
	u32			thread;
	u32			handle_bytes;
	int			handle_type;
	u8			handle[48] __aligned(4);
};

#define KSMBD_NOTIFY_MAX_CAUSES	256

/* Hooks in ksmbd */
int ksmbd_notify_init(void);
void ksmbd_notify_exit(void);
void ksmbd_notify_conn_init(struct ksmbd_notify_conn *nc);
int ksmbd_notify_async_id(struct ksmbd_conn *conn);
void ksmbd_notify_release(struct ksmbd_work *work);
void ksmbd_notify_cancel(struct ksmbd_work *work, const struct smb2_hdr *hdr);
void ksmbd_notify_cancelled(struct ksmbd_conn *conn);
void ksmbd_notify_disconnect(struct ksmbd_file *fp);
void ksmbd_notify_close(struct ksmbd_file *fp, struct ksmbd_work *work);
void ksmbd_notify_delete_pending(struct ksmbd_inode *ci);
void ksmbd_notify_session_failed(struct ksmbd_session *sess);
void ksmbd_notify_releasing(struct ksmbd_conn *conn);
void ksmbd_notify_flush(struct ksmbd_conn *conn);
int ksmbd_notify_write_rest(struct ksmbd_conn *conn, int flags);

/* For notify_netlink.c; daemon is the port id of the calling socket */
int ksmbd_notify_register(u32 daemon, u32 *registrations);
void ksmbd_notify_unregister(u32 daemon);
int ksmbd_notify_next(u32 daemon, struct ksmbd_notify_next *to, int max,
		      bool *all);
void ksmbd_notify_unnext(u32 daemon, struct ksmbd_notify_next *from, int n);
int ksmbd_notify_ack(u32 daemon, u64 id, int err);
int ksmbd_notify_complete(u32 daemon, u64 id, struct notify_told *told);

bool ksmbd_notify_watching(void);
bool ksmbd_notify_registered(u32 daemon);

/* notify_cause.c */
void ksmbd_notify_begin(struct ksmbd_notify_cause *cause,
			const struct dentry *dentry, u32 filter);
void ksmbd_notify_begin_xattr(struct ksmbd_notify_cause *cause,
			      const struct dentry *dentry, const char *name,
			      const void *value);
void ksmbd_notify_end(struct ksmbd_notify_cause *cause);
u32 ksmbd_notify_basic_filter(const void *buffer);
void ksmbd_notify_begin_times(struct ksmbd_notify_cause *cause,
			      const struct path *path, struct iattr *attrs);
int ksmbd_notify_allocate(struct file *filp, loff_t size, bool created);
void ksmbd_notify_put_causes(struct sk_buff *msg);

/* The daemon is stuck if it handles no item for so long, in milliseconds. */
#define KSMBD_NOTIFY_ACK_TIMEOUT	2000
/* So much longer than that may a request wait for one that is not. */
#define KSMBD_NOTIFY_ACK_PATIENCE	4

/* notify_netlink.c */
int ksmbd_notify_netlink_init(void);
void ksmbd_notify_netlink_exit(void);
int ksmbd_notify_ring(void);

#endif /* __KSMBD_NOTIFY_H__ */
