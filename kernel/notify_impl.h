/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the files of the notify part share, and its lock rules.
 *
 * notify.c		life of watches and requests, offered and ended
 * notify_park.c	the handler for CHANGE_NOTIFY, which parks requests
 * notify_send.c	sends responses
 * notify_end.c		ends that come from SMB: CANCEL, CLOSE, deletion, teardown
 * notify_daemon.c	what the daemon asks
 * notify_see.c		what a client's user may see of a change
 * notify_cause.c	what SMB requests change
 * notify_netlink.c	the generic netlink family
 *
 * Life of a request. smb2_notify() parks it and holds it until the responses
 * that go before it are written; ksmbd_notify_release() then offers it to the
 * daemon. It is handled when the daemon has acknowledged it, or nobody is
 * there to do so, or KSMBD_NOTIFY_ACK_TIMEOUT has passed: from then on
 * STATUS_PENDING may be sent. It is taken, once, by whoever ends it: the
 * daemon, CANCEL, CLOSE, deletion, teardown. Before the final response it is
 * found out what the client's user may see of the records that the daemon has
 * given. If that is nothing, the request pends on and is offered to the daemon
 * once more.
 *
 * Locks. notify_lock is innermost: it is taken under conn->request_lock, under
 * a file table's lock and under ci->m_lock, and no other lock is taken under
 * it. It covers all that this header declares but for what comments say of a
 * request and of struct ksmbd_notify_conn. Nothing sleeps under it.
 */

#ifndef __KSMBD_NOTIFY_IMPL_H__
#define __KSMBD_NOTIFY_IMPL_H__

#include <linux/hashtable.h>
#include <linux/list.h>
#include <linux/refcount.h>
#include <linux/spinlock.h>
#include <linux/workqueue.h>

#include "glob.h"
#include "connection.h"
#include "ksmbd_work.h"
#include "mgmt/share_config.h"
#include "mgmt/tree_connect.h"
#include "mgmt/user_config.h"
#include "mgmt/user_session.h"
#include "notify.h"
#include "notify_compat.h"
#include "notify_uapi.h"
#include "server.h"
#include "smb_common.h"
#include "../common/smb2status.h"
#include "vfs_cache.h"

/* FILE_NOTIFY_INFORMATION, MS-FSCC 2.7.1 */
struct notify_information {
	__le32	next;
	__le32	action;
	__le32	name_length;
	__le16	name[];
} __packed;

/* What waits for the daemon: a watch or a request. Must be their first member. */
struct notify_item {
	struct list_head	entry;	/* in a queue, which then owns a reference */
	struct hlist_node	flight;	/* in notify_flight, likewise, until acknowledged */
	refcount_t		refs;
	u32			type;	/* enum ksmbd_notify_item_type */
	u64			id;
};

/* What may_list() has found of a directory below a watched one. */
struct notify_verdict {
	struct list_head	entry;		/* in watch->verdicts */
	bool			may;
	u8			handle[] __aligned(4);	/* struct file_handle */
};

/*
 * What a client may hold is bounded by ksmbd's open files, 10,000 if not
 * configured: a watch is one of them, and takes some 250 bytes besides, and up
 * to 2 KiB (ext4) or 6 KiB (the longest handles) of verdicts for a tree. What
 * it may have pend is bounded for each connection, at about 1 KiB a request.
 */
struct notify_watch {
	struct notify_item	item;
	struct list_head	entry;		/* in notify_watches until closed */
	struct list_head	requests;	/* not yet ended, oldest first */
	struct list_head	verdicts;	/* last used first */
	unsigned int		verdict_count;
	struct ksmbd_file	*fp;		/* NULL once closed */
	struct file		*dir;		/* a reference, until closed */
	const struct super_block *fs;		/* its filesystem, to compare */
	unsigned int		asks;		/* requests in ksmbd_notify_conn.asks */
	u64			client;		/* ksmbd_notify_conn.id */
	u32			filter;
	u32			ceiling;
	bool			tree;
	bool			known;		/* the daemon has got it */
	bool			armed;		/* the daemon has marks in place */
	bool			promised;	/* a client relies on it */
	bool			told;		/* something, and nobody has asked since */
	bool			rescan;		/* some of what was promised may be lost */
	const char		*share;		/* behind user */
	char			user[];
};

/* A change record as the daemon gave it. */
struct notify_record {
	u32			size;		/* to the next one, a multiple of 4 */
	u32			action;		/* enum ksmbd_notify_action */
	u32			name_length;
	u32			handle_length;	/* 0 without one */
	u8			data[];		/* struct file_handle, padded; name */
};

/* What the daemon has completed a request with, until that is sent. */
struct notify_told {
	struct file		*dir;		/* the watched directory, a reference, if below */
	bool			below;		/* some are of directories below it */
	u32			status;		/* 0 or enum ksmbd_notify_status */
	size_t			room;		/* bytes that a response may need */
	size_t			length;		/* of the records */
	u8			records[] __aligned(4);
};

struct ksmbd_notify_request {
	struct notify_item	item;
	struct notify_watch	*watch;		/* a reference */
	struct ksmbd_work	*work;		/* the response */
	struct hlist_node	hash;		/* in notify_requests until taken */
	struct list_head	entry;		/* in watch->requests until ended */
	struct list_head	waiting;	/* in notify_waiting until handled */
	struct list_head	send;		/* in ksmbd_notify_conn.send, asks or spent */
	struct work_struct	ask;
	struct ksmbd_notify_request *held_next;
	unsigned long		deadline;
	void			*cancel_argv[1];
	struct smb2_hdr		hdr;		/* of the response, not asynchronous */
	struct notify_told	*told;		/* by the daemon, not sent yet */
	void			*response;	/* with records, instead of work's */
	size_t			bytes;		/* of response that are accounted for */
	u32			limit;
	u32			length;
	struct notify_information *last;
	struct file		*dir;		/* the watched directory, see may_list() */
	const struct file_handle *listed;	/* what may_list() has looked at last */
	int			may_list;	/* and what it has found */
	bool			old_withheld;	/* the last record, an old name */
	bool			lost;		/* a record is missing */
	__le32			status;		/* if not done, how to end unclaimed */
	bool			held;		/* by work->notify_held of some work */
	bool			offered;	/* to the daemon, after the first hold */
	bool			known;		/* the daemon has got it, see notify_watch too */
	bool			handled;	/* STATUS_PENDING may go out */
	bool			taken;		/* somebody is ending it */
	bool			done;		/* status is final */
	bool			refused;	/* no STATUS_PENDING if not sent yet */
	bool			interim;	/* STATUS_PENDING has been sent */
	bool			final;		/* what is being sent ends it */
	bool			begun;		/* and is, or was, ksmbd_notify_conn.rest */
};

/* An item on its way to the daemon. */
struct ksmbd_notify_next {
	u32			type;	/* enum ksmbd_notify_item_type */
	struct notify_item	*item;	/* a reference */
	struct file		*dir;	/* a reference, with a watch */
	bool			rescan;	/* with a watch */
	int			fd;
};

extern spinlock_t notify_lock;
extern struct list_head notify_watches;		/* by ->entry */
/* What the daemon is yet to fetch: what clients wait for goes first. */
extern struct list_head notify_items;
extern struct list_head notify_ends;
extern DECLARE_HASHTABLE(notify_flight, 10);	/* fetched, by id, not acknowledged */
extern struct list_head notify_waiting;		/* requests not handled, oldest first */
extern DECLARE_HASHTABLE(notify_requests, 10);	/* not taken, by id */
extern u64 notify_last_id;			/* of watches and requests */
extern u32 notify_daemon;			/* the registered one's port id, or 0 */
extern unsigned long notify_progress;		/* when it last did an item */
extern size_t notify_bytes;			/* of change records that wait to be sent */
extern struct workqueue_struct *notify_wq;	/* for what never waits */
extern struct workqueue_struct *notify_send_wq;	/* sends over TCP, which does not either */
extern struct workqueue_struct *notify_ask_wq;	/* asks filesystems, which may hang */
extern struct workqueue_struct *notify_rdma_wq;	/* sends over RDMA, which does */

static inline struct notify_watch *item_watch(struct notify_item *item)
{
	return container_of(item, struct notify_watch, item);
}

static inline struct ksmbd_notify_request *item_request(struct notify_item *item)
{
	return container_of(item, struct ksmbd_notify_request, item);
}

static inline bool item_is_request(const struct notify_item *item)
{
	return item->type == KSMBD_NOTIFY_ITEM_TYPE_REQUEST ||
	       item->type == KSMBD_NOTIFY_ITEM_TYPE_CANCEL;
}

/* Where an item of @type waits: what clients wait for goes first. */
static inline struct list_head *notify_queue(u32 type)
{
	return type == KSMBD_NOTIFY_ITEM_TYPE_CANCEL ||
	       type == KSMBD_NOTIFY_ITEM_TYPE_UNWATCH ? &notify_ends :
							&notify_items;
}

static inline bool conn_is_dead(struct ksmbd_conn *conn)
{
	return ksmbd_conn_exiting(conn) || ksmbd_conn_releasing(conn);
}

/* notify.c, all under notify_lock but for notify_item_put() */
void notify_item_put(struct notify_item *item);
void notify_item_queue(struct notify_item *item, u32 type);
void notify_item_unqueue(struct notify_item *item);
void notify_item_land(struct notify_item *item);
void notify_request_promise(struct ksmbd_notify_request *req);
void notify_request_set_handled(struct ksmbd_notify_request *req);
void notify_request_finish(struct ksmbd_notify_request *req, __le32 status);
void notify_request_end(struct ksmbd_notify_request *req, __le32 status);
void notify_watch_close(struct notify_watch *watch, __le32 status,
			struct ksmbd_work *work);
void notify_watch_doubt(struct notify_watch *watch);

/* notify_see.c */
__le32 notify_request_fill(struct ksmbd_notify_request *req,
			   struct notify_told *told);

/* notify_daemon.c, under notify_lock but for notify_told_free() */
void notify_request_charge(struct ksmbd_notify_request *req, size_t bytes);
void notify_request_withheld(struct ksmbd_notify_request *req);
void notify_told_free(struct notify_told *told);

/* notify_send.c */
void notify_request_send(struct ksmbd_notify_request *req);
bool notify_conn_claim(struct ksmbd_conn *conn);
void notify_conn_send(struct ksmbd_conn *conn);
void notify_request_ask_work(struct work_struct *ws);
void notify_request_free(struct ksmbd_notify_request *req);

/* notify_park.c */
void notify_cancel_fn(void **argv);

/* notify_end.c */
bool notify_overtaken(struct ksmbd_work *work, __le64 mid);

#endif /* __KSMBD_NOTIFY_IMPL_H__ */
