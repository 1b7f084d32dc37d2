// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * SMB2 CHANGE_NOTIFY: watches, parked requests and their responses.
 *
 * Life of a request. ksmbd_notify() parks it and holds it until the responses
 * that go before it are written; ksmbd_notify_release() then offers it to the
 * daemon. It is handled when the daemon has acknowledged it, or nobody is
 * there to do so, or KSMBD_NOTIFY_ACK_TIMEOUT has passed: from then on
 * STATUS_PENDING may be sent. It is taken, once, by whoever ends it: the
 * daemon, CANCEL, CLOSE, deletion, teardown. All that is sent for it is sent
 * by its connection's work item, which also frees it after the final response.
 *
 * notify_lock is innermost: it is taken under conn->request_lock, under a file
 * table's lock and under ci->m_lock, and covers all state in this file but
 * ksmbd_notify_conn.pending.
 */

#include <linux/cred.h>
#include <linux/exportfs.h>
#include <linux/fs.h>
#include <linux/hashtable.h>
#include <linux/mount.h>
#include <linux/namei.h>
#include <linux/refcount.h>
#include <linux/slab.h>
#include <linux/unaligned.h>
#include <linux/xattr.h>

#include "glob.h"
#include "connection.h"
#include "ksmbd_work.h"
#include "mgmt/ksmbd_ida.h"
#include "mgmt/share_config.h"
#include "mgmt/tree_connect.h"
#include "mgmt/user_config.h"
#include "mgmt/user_session.h"
#include "ndr.h"
#include "notify.h"
#include "notify_compat.h"
#include "notify_uapi.h"
#include "server.h"
#include "smb_common.h"
#include "smbacl.h"
#include "../common/smb2status.h"
#include "unicode.h"
#include "vfs_cache.h"

/* What Windows allows, see MS-SMB2 3.3.5.19 on asynchronous requests. */
#define NOTIFY_MAX_PENDING	511

/* Directories of a watch tree whose verdicts are kept. */
#define NOTIFY_MAX_VERDICTS	32

/* FILE_NOTIFY_INFORMATION, MS-FSCC 2.7.1 */
struct notify_information {
	__le32	next;
	__le32	action;
	__le32	name_length;
	__le16	name[];
} __packed;

/* What waits for the daemon: a watch or a request. Must be their first member. */
struct notify_item {
	struct list_head	entry;	/* in notify_items, which then owns a reference */
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

struct notify_watch {
	struct notify_item	item;
	struct list_head	entry;		/* in notify_watches until closed */
	struct list_head	requests;	/* not yet ended, oldest first */
	struct list_head	verdicts;	/* last used first */
	unsigned int		verdict_count;
	struct ksmbd_file	*fp;		/* NULL once closed */
	struct file		*dir;		/* a reference, until closed */
	u32			filter;
	u32			ceiling;
	bool			tree;
	bool			known;		/* the daemon has got it */
	bool			armed;		/* the daemon has marks in place */
	bool			promised;	/* a client relies on it */
	bool			rescan;		/* promised, but not armed */
	char			user[KSMBD_REQ_MAX_ACCOUNT_NAME_SZ];
	char			share[KSMBD_REQ_MAX_SHARE_NAME];
};

struct ksmbd_notify_request {
	struct notify_item	item;
	struct notify_watch	*watch;		/* a reference */
	struct ksmbd_work	*work;		/* the response */
	struct hlist_node	hash;		/* in notify_requests until taken */
	struct list_head	entry;		/* in watch->requests until ended */
	struct list_head	waiting;	/* in notify_waiting until handled */
	struct list_head	send;		/* in ksmbd_notify_conn.send */
	struct ksmbd_notify_request *held_next;
	unsigned long		deadline;
	void			*cancel_argv[1];
	struct smb2_hdr		hdr;		/* of the response, not asynchronous */
	void			*response;	/* with records, instead of work's */
	u32			limit;
	u32			length;
	struct notify_information *last;
	struct file		*dir;		/* the watched directory, once claimed */
	const struct file_handle *listed;	/* what may_list() has looked at last */
	int			may_list;	/* and what it has found */
	bool			old_withheld;	/* the last record, an old name */
	bool			lost;		/* a record is missing */
	__le32			status;		/* if not done, how to end unclaimed */
	bool			held;		/* by work->notify_held of some work */
	bool			offered;	/* to the daemon, after the first hold */
	bool			known;		/* the daemon has got it */
	bool			handled;	/* STATUS_PENDING may go out */
	bool			taken;		/* somebody is ending it */
	bool			done;		/* status is final */
	bool			refused;	/* no STATUS_PENDING if not sent yet */
	bool			interim;	/* STATUS_PENDING has been sent */
};

static DEFINE_SPINLOCK(notify_lock);
static LIST_HEAD(notify_watches);
static LIST_HEAD(notify_items);
static LIST_HEAD(notify_waiting);
static DEFINE_HASHTABLE(notify_requests, 10);
static u64 notify_last_id;

/* The registered daemon's port id or 0, and what it was handed last. */
static u32 notify_daemon;
static u32 notify_registrations;		/* of all daemons so far */
static struct notify_item *notify_inflight;	/* a reference */
static u32 notify_inflight_type;
static unsigned long notify_progress;		/* when it last did one */

static struct workqueue_struct *notify_wq;

static struct notify_watch *item_watch(struct notify_item *item)
{
	return container_of(item, struct notify_watch, item);
}

static struct ksmbd_notify_request *item_request(struct notify_item *item)
{
	return container_of(item, struct ksmbd_notify_request, item);
}

static bool item_is_request(const struct notify_item *item)
{
	return item->type == KSMBD_NOTIFY_ITEM_TYPE_REQUEST ||
	       item->type == KSMBD_NOTIFY_ITEM_TYPE_CANCEL;
}

static void item_put(struct notify_item *item)
{
	struct notify_verdict *verdict, *tmp;
	struct notify_watch *watch = NULL;

	if (!refcount_dec_and_test(&item->refs))
		return;
	if (item_is_request(item))
		watch = item_request(item)->watch;
	else
		list_for_each_entry_safe(verdict, tmp,
					 &item_watch(item)->verdicts, entry)
			kfree(verdict);
	kfree(item);
	if (watch)
		item_put(&watch->item);
}

/* The daemon is told by a work item: queueing happens under spinlocks. */
static void notify_bell_work(struct work_struct *ws)
{
	if (ksmbd_notify_ring() == -ENOMEM)
		queue_delayed_work(notify_wq, to_delayed_work(ws), HZ / 10);
}

static DECLARE_DELAYED_WORK(notify_bell, notify_bell_work);

static void item_queue(struct notify_item *item, u32 type)
{
	lockdep_assert_held(&notify_lock);

	item->type = type;
	if (!list_empty(&item->entry))
		return;
	if (list_empty(&notify_items))
		queue_delayed_work(notify_wq, &notify_bell, 0);
	refcount_inc(&item->refs);
	list_add_tail(&item->entry, &notify_items);
}

static void item_unqueue(struct notify_item *item)
{
	lockdep_assert_held(&notify_lock);

	if (list_empty(&item->entry))
		return;
	list_del_init(&item->entry);
	item_put(item);
}

/* Something of @req may have become fit to be sent. */
static void request_send(struct ksmbd_notify_request *req)
{
	struct ksmbd_conn *conn = req->work->conn;

	lockdep_assert_held(&notify_lock);

	if (req->held || !req->handled || (req->interim && !req->done))
		return;
	if (list_empty(&req->send))
		list_add_tail(&req->send, &conn->notify.send);
	/* The work may outlive its last request. */
	ksmbd_conn_get(conn);
	if (!queue_work(notify_wq, &conn->notify.work))
		ksmbd_conn_put(conn);
}

static void request_set_handled(struct ksmbd_notify_request *req)
{
	lockdep_assert_held(&notify_lock);

	req->handled = true;
	list_del_init(&req->waiting);
}

/*
 * The client gets its STATUS_PENDING. If that is not yet true because the
 * daemon is late or absent, a rescan makes up for it.
 */
static void request_promise(struct ksmbd_notify_request *req)
{
	struct notify_watch *watch = req->watch;

	lockdep_assert_held(&notify_lock);

	if (req->handled)
		return;
	request_set_handled(req);
	if (watch->fp) {
		watch->promised = true;
		if (!watch->armed) {
			watch->rescan = true;
			if (watch->known)
				item_queue(&watch->item,
					   KSMBD_NOTIFY_ITEM_TYPE_WATCH);
		}
	}
	request_send(req);
}

static bool request_take(struct ksmbd_notify_request *req)
{
	lockdep_assert_held(&notify_lock);

	if (req->taken)
		return false;
	req->taken = true;
	list_del_init(&req->entry);
	hash_del(&req->hash);
	return true;
}

static void request_finish(struct ksmbd_notify_request *req, __le32 status)
{
	lockdep_assert_held(&notify_lock);

	req->status = status;
	req->done = true;
	if (status != STATUS_CANCELLED)
		request_set_handled(req);

	if (!req->known) {
		if (req->handled)
			item_unqueue(&req->item);
	} else if (req->watch->fp) {
		item_queue(&req->item, KSMBD_NOTIFY_ITEM_TYPE_CANCEL);
	}
	request_send(req);
}

/*
 * Ends @req without the daemon. Only a cancelled request still waits until
 * the daemon has handled it, so that the watch is armed by the time the client
 * learns of its end; the other ends end the watch as well. A request that the
 * daemon has claimed is the daemon's, but may come back.
 */
static void request_end(struct ksmbd_notify_request *req, __le32 status)
{
	lockdep_assert_held(&notify_lock);

	if (request_take(req))
		request_finish(req, status);
	else if (!req->done && !req->status)
		req->status = status;
}

/* Ends a watch; its requests end with @status, held by @work if there is one. */
static void watch_close(struct notify_watch *watch, __le32 status,
			struct ksmbd_work *work)
{
	struct ksmbd_notify_request *req, *tmp, **tail = NULL;

	lockdep_assert_held(&notify_lock);

	watch->fp->notify = NULL;
	watch->fp = NULL;
	list_del(&watch->entry);

	if (work)
		for (tail = &work->notify_held; *tail;
		     tail = &(*tail)->held_next)
			;
	list_for_each_entry_safe(req, tmp, &watch->requests, entry) {
		if (tail && !req->held && !req->taken) {
			req->held = true;
			*tail = req;
			tail = &req->held_next;
		}
		request_end(req, status);
	}

	if (watch->known)
		item_queue(&watch->item, KSMBD_NOTIFY_ITEM_TYPE_UNWATCH);
	else
		item_unqueue(&watch->item);
	fput(watch->dir);
	item_put(&watch->item);
}

/* Whether there is a watch, or was just now. */
bool ksmbd_notify_watching(void)
{
	return !list_empty(&notify_watches);
}

/*
 * Sending
 */

static int request_write(struct ksmbd_notify_request *req, __le32 status)
{
	struct ksmbd_work *work = req->work;
	struct ksmbd_conn *conn = work->conn;
	struct smb2_change_notify_rsp *rsp;
	u32 length = 0;
	int rc;

	/* Encryption has spoilt what the interim response was made of. */
	kfree(work->tr_buf);
	work->tr_buf = NULL;
	work->iov_idx = 0;
	work->iov_cnt = 0;

	if (status == STATUS_SUCCESS) {
		kvfree(work->response_buf);
		work->response_buf = req->response;
		req->response = NULL;
		length = req->length;
	}

	rsp = smb_get_msg(work->response_buf);
	rsp->hdr = req->hdr;
	rsp->hdr.Status = status;
	if (status == STATUS_PENDING || req->interim) {
		rsp->hdr.Flags |= SMB2_FLAGS_ASYNC_COMMAND;
		rsp->hdr.Id.AsyncId = cpu_to_le64(work->async_id);
	}
	if (req->interim)
		rsp->hdr.CreditRequest = 0;
	rsp->StructureSize = cpu_to_le16(9);
	rsp->OutputBufferOffset = length ? cpu_to_le16(sizeof(*rsp)) : 0;
	rsp->OutputBufferLength = cpu_to_le32(length);
	if (!length)
		rsp->Buffer[0] = 0;

	rc = ksmbd_iov_pin_rsp(work, rsp, sizeof(*rsp) + max(length, 1u));
	if (rc)
		return rc;

	/* MS-SMB2 3.3.4.1.1: an interim response is not signed. */
	if (status != STATUS_PENDING &&
	    (work->sess->sign ||
	     conn->ops->is_sign_req(work, SMB2_CHANGE_NOTIFY_HE)))
		conn->ops->set_sign_rsp(work);

	if (work->sess->enc && work->encrypted && conn->ops->encrypt_resp) {
		rc = conn->ops->encrypt_resp(work);
		if (rc)
			return rc;
	}

	return ksmbd_conn_write(work);
}

/* Frees what is left of a request when nobody else can find it any more. */
static void request_free(struct ksmbd_notify_request *req)
{
	struct ksmbd_work *work = req->work;
	struct ksmbd_conn *conn = work->conn;

	spin_lock(&conn->request_lock);
	list_del_init(&work->async_request_entry);
	conn->notify.pending--;
	spin_unlock(&conn->request_lock);

	ksmbd_tree_connect_put(work->tcon);
	ksmbd_user_session_put(work->sess);
	ksmbd_free_work_struct(work);
	kvfree(req->response);
	item_put(&req->item);
	/* Teardown of the connection waits for this. */
	ksmbd_conn_r_count_dec(conn);
}

static bool conn_is_dead(struct ksmbd_conn *conn)
{
	return ksmbd_conn_exiting(conn) || ksmbd_conn_releasing(conn);
}

/* Runs for one connection at a time, so that responses keep their order. */
static void notify_conn_work(struct work_struct *ws)
{
	struct ksmbd_notify_conn *nc =
		container_of(ws, struct ksmbd_notify_conn, work);
	struct ksmbd_conn *conn = container_of(nc, struct ksmbd_conn, notify);
	struct ksmbd_notify_request *req;
	bool interim, done;
	int rc;

	for (;;) {
		spin_lock(&notify_lock);
		req = list_first_entry_or_null(&nc->send,
					       struct ksmbd_notify_request,
					       send);
		if (!req) {
			spin_unlock(&notify_lock);
			break;
		}
		list_del_init(&req->send);
		interim = !req->interim && !req->refused;
		/* It may have been on the list already when CLOSE held it. */
		done = req->done && !req->held;
		spin_unlock(&notify_lock);

		rc = 0;
		if (interim && !conn_is_dead(conn))
			rc = request_write(req, STATUS_PENDING);
		if (interim)
			req->interim = true;
		if (done && !rc && !conn_is_dead(conn))
			rc = request_write(req, req->status);
		/* A client must not wait for a response that was lost. */
		if (rc)
			ksmbd_conn_abort(conn);
		if (done)
			request_free(req);
	}

	ksmbd_conn_put(conn);
}

void ksmbd_notify_conn_init(struct ksmbd_notify_conn *nc)
{
	INIT_LIST_HEAD(&nc->send);
	INIT_WORK(&nc->work, notify_conn_work);
}

/**
 * ksmbd_notify_flush() - have what was ended sent
 * @conn:	connection, whose srv_mutex the caller must not hold
 *
 * TREE_DISCONNECT and LOGOFF answer after the requests that they end.
 */
void ksmbd_notify_flush(struct ksmbd_conn *conn)
{
	flush_work(&conn->notify.work);
}

/*
 * Parking
 */

/* Called under conn->request_lock, as every cancel_fn. */
static void notify_cancel_fn(void **argv)
{
	struct ksmbd_notify_request *req = argv[0];

	spin_lock(&notify_lock);
	request_end(req, conn_is_dead(req->work->conn) ?
			 STATUS_NOTIFY_CLEANUP : STATUS_CANCELLED);
	spin_unlock(&notify_lock);
}

static struct notify_watch *watch_alloc(struct ksmbd_work *work,
					const struct smb2_change_notify_req *r)
{
	struct notify_watch *watch;

	watch = kzalloc_obj(*watch, KSMBD_DEFAULT_GFP);
	if (!watch)
		return NULL;
	INIT_LIST_HEAD(&watch->item.entry);
	INIT_LIST_HEAD(&watch->requests);
	INIT_LIST_HEAD(&watch->verdicts);
	refcount_set(&watch->item.refs, 1);
	watch->item.type = KSMBD_NOTIFY_ITEM_TYPE_WATCH;
	watch->filter = le32_to_cpu(r->CompletionFilter);
	watch->ceiling = le32_to_cpu(r->OutputBufferLength);
	watch->tree = le16_to_cpu(r->Flags) & SMB2_WATCH_TREE;
	strscpy(watch->user, user_name(work->sess->user));
	strscpy(watch->share, work->tcon->share_conf->name);
	return watch;
}

static struct ksmbd_notify_request *request_alloc(struct ksmbd_work *work)
{
	struct ksmbd_notify_request *req;
	struct ksmbd_work *rsp;
	struct smb2_hdr *hdr;

	req = kzalloc_obj(*req, KSMBD_DEFAULT_GFP);
	rsp = ksmbd_alloc_work_struct();
	if (!req || !rsp)
		goto err;
	rsp->conn = work->conn;
	/* CANCEL and is_sign_req() read the header of the request. */
	rsp->request_buf = kvzalloc(sizeof(__be32) + sizeof(*hdr),
				    KSMBD_DEFAULT_GFP);
	rsp->response_buf = kvzalloc(sizeof(__be32) +
				     sizeof(struct smb2_change_notify_rsp) + 1,
				     KSMBD_DEFAULT_GFP);
	if (!rsp->request_buf || !rsp->response_buf)
		goto err;
	*(__be32 *)rsp->request_buf = cpu_to_be32(sizeof(*hdr));
	hdr = smb_get_msg(rsp->request_buf);
	*hdr = *(struct smb2_hdr *)ksmbd_req_buf_next(work);
	hdr->SessionId = cpu_to_le64(work->sess->id);
	rsp->async_id = ksmbd_acquire_async_msg_id(&work->conn->async_ida);
	if (rsp->async_id < 0) {
		rsp->async_id = 0;
		goto err;
	}
	rsp->encrypted = work->encrypted;
	rsp->asynchronous = true;
	rsp->cancel_fn = notify_cancel_fn;
	rsp->cancel_argv = req->cancel_argv;

	INIT_LIST_HEAD(&req->item.entry);
	INIT_LIST_HEAD(&req->waiting);
	INIT_LIST_HEAD(&req->send);
	refcount_set(&req->item.refs, 1);
	req->item.type = KSMBD_NOTIFY_ITEM_TYPE_REQUEST;
	req->cancel_argv[0] = req;
	req->work = rsp;
	req->held = true;
	return req;

err:
	if (rsp)
		ksmbd_free_work_struct(rsp);
	kfree(req);
	return NULL;
}

/*
 * Makes @req findable; @watch is used if it is the handle's first. Without a
 * handle the watch has ended before it began.
 */
static __le32 request_link(struct ksmbd_work *work, struct ksmbd_file *fp,
			   struct ksmbd_notify_request *req,
			   struct notify_watch *watch)
{
	struct ksmbd_conn *conn = work->conn;
	__le32 status = STATUS_SUCCESS;
	struct smb2_hdr *hdr;

	spin_lock(&conn->request_lock);
	spin_lock(&notify_lock);
	if (conn_is_dead(conn) ||
	    (fp && (fp->f_state != FP_INITED ||
		    !has_file_id(fp->volatile_id)))) {
		status = STATUS_FILE_CLOSED;
		goto out;
	}
	if (conn->notify.pending == NOTIFY_MAX_PENDING) {
		status = STATUS_INSUFFICIENT_RESOURCES;
		goto out;
	}
	conn->notify.pending++;
	ksmbd_conn_r_count_inc(conn);
	ksmbd_user_session_get(work->sess);
	req->work->sess = work->sess;
	/* For the share's configuration; work itself holds another. */
	atomic_inc(&work->tcon->refcount);
	req->work->tcon = work->tcon;
	list_add_tail(&req->work->async_request_entry, &conn->async_requests);

	if (fp && !fp->notify) {
		refcount_inc(&watch->item.refs);
		watch->item.id = ++notify_last_id;
		watch->fp = fp;
		watch->dir = get_file(fp->filp);
		list_add_tail(&watch->entry, &notify_watches);
		fp->notify = watch;
	}
	if (fp)
		watch = fp->notify;
	refcount_inc(&watch->item.refs);
	req->watch = watch;
	req->item.id = ++notify_last_id;
	req->limit = min(req->limit, watch->ceiling);
	list_add_tail(&req->entry, &watch->requests);
	hash_add(notify_requests, &req->hash, req->item.id);

	/* CANCEL may have overtaken. */
	hdr = smb_get_msg(req->work->request_buf);
	if (work->state == KSMBD_WORK_CANCELLED ||
	    conn->notify.cancelled == hdr->MessageId) {
		req->work->state = KSMBD_WORK_CANCELLED;
		request_end(req, STATUS_CANCELLED);
	} else if (!fp) {
		request_end(req, STATUS_NOTIFY_CLEANUP);
	}
out:
	spin_unlock(&notify_lock);
	spin_unlock(&conn->request_lock);
	return status;
}

static __le32 request_park(struct ksmbd_work *work, struct ksmbd_file *fp,
			   const struct smb2_change_notify_req *r)
{
	struct ksmbd_conn *conn = work->conn;
	struct ksmbd_notify_request *req, **tail;
	struct notify_watch *watch;
	__le32 status;
	int rc;

	watch = watch_alloc(work, r);
	req = request_alloc(work);
	if (!watch || !req) {
		status = STATUS_INSUFFICIENT_RESOURCES;
		goto err;
	}
	req->limit = min_t(u32, le32_to_cpu(r->OutputBufferLength),
			   SMB3_MAX_IOSIZE);
	status = request_link(work, fp, req, watch);
	if (status != STATUS_SUCCESS)
		goto err;
	item_put(&watch->item);

	/* The interim response grants what the whole compound has earned. */
	spin_lock(&conn->credits_lock);
	rc = conn->ops->set_rsp_credits(work);
	spin_unlock(&conn->credits_lock);
	if (rc) {
		/* Nothing is sent of what is held: take it back. */
		spin_lock(&notify_lock);
		request_end(req, STATUS_INVALID_PARAMETER);
		spin_unlock(&notify_lock);
		request_free(req);
		return STATUS_INVALID_PARAMETER;
	}

	req->hdr = *(struct smb2_hdr *)ksmbd_resp_buf_next(work);
	req->hdr.Flags &= ~SMB2_FLAGS_RELATED_OPERATIONS;
	memset(req->hdr.Signature, 0, sizeof(req->hdr.Signature));

	for (tail = &work->notify_held; *tail; tail = &(*tail)->held_next)
		;
	*tail = req;
	return STATUS_PENDING;

err:
	if (req) {
		ksmbd_free_work_struct(req->work);
		kfree(req);
	}
	kfree(watch);
	return status;
}

/* The responses before a parked request, the last of a compound, go out. */
static void notify_leave_compound(struct ksmbd_work *work)
{
	struct smb2_hdr *last = ksmbd_resp_buf_curr(work);

	work->notify_parked = true;
	if (!work->next_smb2_rcv_hdr_off) {
		work->send_no_response = 1;
		return;
	}
	last->NextCommand = 0;
	if (work->sess->sign ||
	    work->conn->ops->is_sign_req(work, SMB2_CHANGE_NOTIFY_HE))
		work->conn->ops->set_sign_rsp(work);
}

static __le32 notify_request(struct ksmbd_work *work,
			     const struct smb2_change_notify_req *r)
{
	u64 id = r->VolatileFileId, pid = r->PersistentFileId;
	u32 length = le32_to_cpu(r->OutputBufferLength);
	struct ksmbd_conn *conn = work->conn;
	struct ksmbd_file *fp;
	__le32 status;

	if (work->next_smb2_rcv_hdr_off && !has_file_id(id)) {
		struct smb2_hdr *last = ksmbd_resp_buf_curr(work);

		id = work->compound_fid;
		pid = work->compound_pfid;
		/* Severity error: there is no handle because of it. */
		if (!has_file_id(id) && le32_to_cpu(last->Status) >> 30 == 3)
			return last->Status;
	}
	/* MS-SMB2 3.3.5.2.7.2: there is nothing before it to be related to. */
	if (!work->next_smb2_rcv_hdr_off &&
	    r->hdr.Flags & SMB2_FLAGS_RELATED_OPERATIONS)
		return STATUS_INVALID_PARAMETER;
	if (r->hdr.NextCommand)
		return STATUS_INTERNAL_ERROR;

	/*
	 * macOS asks without a handle when it looks for Time Machine volumes:
	 * it expects to be told that the watch has ended, not that it failed.
	 */
	if (!work->next_smb2_rcv_hdr_off && !has_file_id(id) &&
	    !has_file_id(pid))
		return request_park(work, NULL, r);

	fp = ksmbd_lookup_fd_slow(work, id, pid);
	if (!fp)
		return STATUS_FILE_CLOSED;

	/* The checks of MS-SMB2 3.3.5.19, in its order. */
	if (length > conn->vals->max_trans_size ||
	    (conn->vals->req_capabilities & SMB2_GLOBAL_CAP_LARGE_MTU &&
	     DIV_ROUND_UP(length, SMB2_MAX_BUFFER_SIZE) >
	     max_t(u16, le16_to_cpu(r->hdr.CreditCharge), 1)))
		status = STATUS_INVALID_PARAMETER;
	else if (!S_ISDIR(file_inode(fp->filp)->i_mode))
		status = STATUS_INVALID_PARAMETER;
	else if (!(fp->daccess & FILE_LIST_DIRECTORY_LE))
		status = STATUS_ACCESS_DENIED;
	else
		status = request_park(work, fp, r);

	/* Deletion may have come first, and then found nothing to end. */
	if (status == STATUS_PENDING && ksmbd_inode_pending_delete(fp)) {
		down_read(&fp->f_ci->m_lock);
		ksmbd_notify_delete_pending(fp->f_ci);
		up_read(&fp->f_ci->m_lock);
	}
	ksmbd_fd_put(work, fp);
	return status;
}

/**
 * ksmbd_notify() - handler for SMB2 CHANGE_NOTIFY
 * @work:	smb work with the request
 *
 * Return:	0, always: a refusal is an answer
 */
int ksmbd_notify(struct ksmbd_work *work)
{
	struct smb2_change_notify_req *req = ksmbd_req_buf_next(work);
	struct smb2_hdr *rsp_hdr = ksmbd_resp_buf_next(work);
	__le32 status;

	/* A related request may do without; CLOSE after it looks here. */
	rsp_hdr->SessionId = cpu_to_le64(work->sess->id);

	status = notify_request(work, req);
	if (status == STATUS_PENDING) {
		notify_leave_compound(work);
	} else {
		rsp_hdr->Status = status;
		smb2_set_err_rsp(work);
	}
	return 0;
}

static void notify_timeout_work(struct work_struct *ws);
static DECLARE_DELAYED_WORK(notify_timeout, notify_timeout_work);

/* The daemon is late: its clients wait no longer. */
static void notify_timeout_work(struct work_struct *ws)
{
	const unsigned long timeout = msecs_to_jiffies(KSMBD_NOTIFY_ACK_TIMEOUT);
	struct ksmbd_notify_request *req, *tmp;
	unsigned long now = jiffies, until;

	spin_lock(&notify_lock);
	list_for_each_entry_safe(req, tmp, &notify_waiting, waiting) {
		/* Many items take long, but who gets on with them is not stuck. */
		until = req->deadline;
		if (time_before(until, notify_progress + timeout))
			until += min(notify_progress + timeout - until,
				     KSMBD_NOTIFY_ACK_PATIENCE * timeout);
		if (time_before(now, until)) {
			mod_delayed_work(notify_wq, &notify_timeout,
					 until - now);
			break;
		}
		request_promise(req);
	}
	spin_unlock(&notify_lock);
}

static void request_offer(struct ksmbd_notify_request *req)
{
	struct notify_watch *watch = req->watch;

	lockdep_assert_held(&notify_lock);

	req->offered = true;
	if (!notify_daemon || !watch->fp) {
		request_promise(req);
		return;
	}
	if (!watch->known)
		item_queue(&watch->item, KSMBD_NOTIFY_ITEM_TYPE_WATCH);
	item_queue(&req->item, KSMBD_NOTIFY_ITEM_TYPE_REQUEST);

	req->deadline = jiffies + msecs_to_jiffies(KSMBD_NOTIFY_ACK_TIMEOUT);
	list_add_tail(&req->waiting, &notify_waiting);
	queue_delayed_work(notify_wq, &notify_timeout,
			   msecs_to_jiffies(KSMBD_NOTIFY_ACK_TIMEOUT));
}

/**
 * ksmbd_notify_release() - let go of requests held for a response
 * @work:	smb work whose response has been written
 */
void ksmbd_notify_release(struct ksmbd_work *work)
{
	struct ksmbd_notify_request *req;

	if (!work->notify_held)
		return;

	spin_lock(&notify_lock);
	while ((req = work->notify_held)) {
		work->notify_held = req->held_next;
		req->held_next = NULL;
		req->held = false;
		if (!req->offered && !req->handled)
			request_offer(req);
		request_send(req);
	}
	spin_unlock(&notify_lock);

	/* The bell can be rung from here: that saves waking a worker. */
	if (cancel_delayed_work(&notify_bell))
		notify_bell_work(&notify_bell.work);
}

/*
 * Ends that come from SMB
 */

/* Whether @work is a compound of @sess_id with the NOTIFY that is meant. */
static bool notify_in_compound(struct ksmbd_work *work, __le64 sess_id,
			       __le64 mid)
{
	u64 len = get_rfc1002_len(work->request_buf), off = 0;
	struct smb2_hdr *hdr;

	for (;;) {
		hdr = smb_get_msg(work->request_buf) + off;
		if (off + sizeof(*hdr) > len ||
		    hdr->ProtocolId != SMB2_PROTO_NUMBER ||
		    (!off && hdr->SessionId != sess_id))
			return false;
		if (hdr->Command == SMB2_CHANGE_NOTIFY &&
		    (!mid || hdr->MessageId == mid))
			return true;
		if (!hdr->NextCommand)
			return false;
		off += le32_to_cpu(hdr->NextCommand);
	}
}

/**
 * ksmbd_notify_cancel() - CANCEL by MessageId, the interim response not seen
 * @work:	smb work of the CANCEL, conn->request_lock held
 * @hdr:	its header
 *
 * Samba's client sends MessageId 0 here, which no NOTIFY has: it means the
 * session's oldest.
 */
void ksmbd_notify_cancel(struct ksmbd_work *work, const struct smb2_hdr *hdr)
{
	struct ksmbd_conn *conn = work->conn;
	struct ksmbd_work *iter;

	lockdep_assert_held(&conn->request_lock);

	list_for_each_entry(iter, &conn->async_requests, async_request_entry) {
		if (iter->cancel_fn != notify_cancel_fn ||
		    iter->state != KSMBD_WORK_ACTIVE ||
		    !notify_in_compound(iter, hdr->SessionId, hdr->MessageId))
			continue;
		iter->state = KSMBD_WORK_CANCELLED;
		iter->cancel_fn(iter->cancel_argv);
		return;
	}
	/* Not parked yet: request_link() will see it. */
	list_for_each_entry(iter, &conn->requests, request_entry) {
		if (iter == work || iter->state != KSMBD_WORK_ACTIVE ||
		    !notify_in_compound(iter, hdr->SessionId, hdr->MessageId))
			continue;
		iter->state = KSMBD_WORK_CANCELLED;
		return;
	}
	/* Not even decrypted yet, perhaps. */
	conn->notify.cancelled = hdr->MessageId;
}

static void watch_end_requests(struct notify_watch *watch, __le32 status)
{
	struct ksmbd_notify_request *req, *tmp;

	lockdep_assert_held(&notify_lock);

	list_for_each_entry_safe(req, tmp, &watch->requests, entry)
		request_end(req, status);
}

/**
 * ksmbd_notify_disconnect() - a durable handle loses its connection
 * @fp:		the file, already unreachable through its volatile id
 *
 * Its watch goes on: what happens until the client has the handle back, the
 * next request is told.
 */
void ksmbd_notify_disconnect(struct ksmbd_file *fp)
{
	spin_lock(&notify_lock);
	if (fp->notify)
		watch_end_requests(fp->notify, STATUS_NOTIFY_CLEANUP);
	spin_unlock(&notify_lock);
}

/**
 * ksmbd_notify_close() - a handle is closed
 * @fp:		the file, already unreachable through its volatile id
 * @work:	smb work of a CLOSE, to answer before its requests; or NULL
 */
void ksmbd_notify_close(struct ksmbd_file *fp, struct ksmbd_work *work)
{
	if (!S_ISDIR(file_inode(fp->filp)->i_mode))
		return;

	spin_lock(&notify_lock);
	if (fp->notify)
		watch_close(fp->notify, STATUS_NOTIFY_CLEANUP, work);
	spin_unlock(&notify_lock);
}

/**
 * ksmbd_notify_delete_pending() - a directory is about to be removed
 * @ci:		its inode, ci->m_lock held
 */
void ksmbd_notify_delete_pending(struct ksmbd_inode *ci)
{
	struct ksmbd_file *fp;

	lockdep_assert_held(&ci->m_lock);

	list_for_each_entry(fp, &ci->m_fp_list, node) {
		spin_lock(&notify_lock);
		if (fp->notify)
			watch_end_requests(fp->notify, STATUS_DELETE_PENDING);
		spin_unlock(&notify_lock);
	}
}

/**
 * ksmbd_notify_session_expired() - reauthentication has failed
 * @sess:	the session, whose handles nobody can use any more
 */
void ksmbd_notify_session_expired(struct ksmbd_session *sess)
{
	struct ksmbd_notify_request *req, *tmp;
	struct notify_watch *watch;

	spin_lock(&notify_lock);
	list_for_each_entry(watch, &notify_watches, entry)
		list_for_each_entry_safe(req, tmp, &watch->requests, entry)
			if (req->work->sess == sess)
				request_end(req, STATUS_NOTIFY_CLEANUP);
	spin_unlock(&notify_lock);
}

/**
 * ksmbd_notify_new_dos_attrib() - store the DOS attributes of a fresh file
 * @idmap:	idmap of the mount
 * @path:	the file
 * @da:		its attributes
 *
 * They belong to the creation: watchers are told of that and of nothing else,
 * so this goes below the layer that tells them.
 *
 * Return:	0 or a negative errno
 */
int ksmbd_notify_new_dos_attrib(struct mnt_idmap *idmap,
				const struct path *path,
				struct xattr_dos_attrib *da)
{
	struct inode *inode = d_inode(path->dentry);
	struct ndr n;
	int err;

	err = ndr_encode_dos_attr(&n, da);
	if (err)
		goto out;
	err = mnt_want_write(path->mnt);
	if (err)
		goto out;
	inode_lock(inode);
	err = __vfs_setxattr(idmap, path->dentry, inode,
			     XATTR_NAME_DOS_ATTRIBUTE, n.data, n.offset, 0);
	inode_unlock(inode);
	mnt_drop_write(path->mnt);
out:
	kfree(n.data);
	return err;
}

/*
 * The daemon's side
 */

static void notify_offer_all(void)
{
	struct ksmbd_notify_request *req;
	struct notify_watch *watch;

	list_for_each_entry(watch, &notify_watches, entry) {
		item_queue(&watch->item, KSMBD_NOTIFY_ITEM_TYPE_WATCH);
		list_for_each_entry(req, &watch->requests, entry)
			if (req->offered)
				item_queue(&req->item,
					   KSMBD_NOTIFY_ITEM_TYPE_REQUEST);
	}
}

/**
 * ksmbd_notify_register() - a daemon takes up its work
 * @daemon:	port id of its socket
 * @registrations:	set to how many there were, this one included
 *
 * Return:	0, or -EBUSY if there is one already
 */
int ksmbd_notify_register(u32 daemon, u32 *registrations)
{
	int err = 0;

	spin_lock(&notify_lock);
	if (!notify_daemon) {
		notify_daemon = daemon;
		*registrations = ++notify_registrations;
		notify_offer_all();
	} else {
		err = -EBUSY;
	}
	spin_unlock(&notify_lock);
	return err;
}

/**
 * ksmbd_notify_unregister() - a socket is gone
 * @daemon:	its port id; if it was the daemon's, requests pend without it
 */
void ksmbd_notify_unregister(u32 daemon)
{
	struct ksmbd_notify_request *req, *tmp;
	struct notify_item *item, *next;
	struct notify_watch *watch;

	spin_lock(&notify_lock);
	if (notify_daemon != daemon)
		goto out;
	notify_daemon = 0;
	if (notify_inflight)
		item_put(notify_inflight);
	notify_inflight = NULL;
	list_for_each_entry_safe(item, next, &notify_items, entry)
		item_unqueue(item);

	list_for_each_entry(watch, &notify_watches, entry) {
		watch->known = false;
		watch->armed = false;
		watch->rescan = watch->promised;
		list_for_each_entry(req, &watch->requests, entry)
			req->known = false;
	}
	list_for_each_entry_safe(req, tmp, &notify_waiting, waiting)
		request_promise(req);
out:
	spin_unlock(&notify_lock);
}

/* The daemon has handled what it was handed last. */
static void notify_ack(void)
{
	struct notify_item *item = notify_inflight;

	lockdep_assert_held(&notify_lock);

	if (!item)
		return;
	notify_inflight = NULL;
	notify_progress = jiffies;
	switch (notify_inflight_type) {
	case KSMBD_NOTIFY_ITEM_TYPE_WATCH:
		item_watch(item)->armed = true;
		break;
	case KSMBD_NOTIFY_ITEM_TYPE_REQUEST:
		request_promise(item_request(item));
		break;
	}
	item_put(item);
}

/**
 * ksmbd_notify_next() - hand out the oldest item, acknowledging the last
 * @daemon:	port id of the calling socket
 * @next:	what is handed out; the caller puts @next->dir
 *
 * Return:	0, -EPERM if @daemon is not registered, -EAGAIN for no item
 */
int ksmbd_notify_next(u32 daemon, struct ksmbd_notify_next *next)
{
	struct ksmbd_notify_request *req;
	struct notify_watch *watch;
	struct notify_item *item;
	int err = 0;

	memset(next, 0, sizeof(*next));
	spin_lock(&notify_lock);
	if (daemon != notify_daemon) {
		err = -EPERM;
		goto out;
	}
	notify_ack();
	item = list_first_entry_or_null(&notify_items, struct notify_item,
					entry);
	if (!item) {
		err = -EAGAIN;
		goto out;
	}
	/* The queue's reference becomes that of notify_inflight. */
	list_del_init(&item->entry);
	notify_inflight = item;
	notify_inflight_type = item->type;
	next->type = item->type;

	if (item_is_request(item)) {
		req = item_request(item);
		watch = req->watch;
		next->request = item->id;
		next->length = req->limit;
		if (item->type == KSMBD_NOTIFY_ITEM_TYPE_REQUEST) {
			req->known = true;
			if (req->taken)
				item_queue(item,
					   KSMBD_NOTIFY_ITEM_TYPE_CANCEL);
		}
	} else {
		watch = item_watch(item);
		next->filter = watch->filter;
		next->length = watch->ceiling;
		next->tree = watch->tree;
		if (item->type == KSMBD_NOTIFY_ITEM_TYPE_WATCH) {
			next->dir = get_file(watch->dir);
			next->rescan = watch->rescan;
			strscpy(next->user, watch->user);
			strscpy(next->share, watch->share);
			watch->rescan = false;
			watch->known = true;
		}
	}
	next->watch = watch->item.id;
out:
	spin_unlock(&notify_lock);
	return err;
}

/* Whether @daemon, the port id of the calling socket, is registered. */
bool ksmbd_notify_registered(u32 daemon)
{
	return daemon == READ_ONCE(notify_daemon);
}

/**
 * ksmbd_notify_unpop() - the item handed out last did not reach the daemon
 * @daemon:	port id of the calling socket
 */
void ksmbd_notify_unpop(u32 daemon)
{
	struct notify_item *item;

	spin_lock(&notify_lock);
	item = notify_inflight;
	if (daemon != notify_daemon || !item)
		goto out;
	notify_inflight = NULL;
	/* If it was queued again, it is for something that supersedes it. */
	if (list_empty(&item->entry) &&
	    (item->type != KSMBD_NOTIFY_ITEM_TYPE_WATCH ||
	     item_watch(item)->fp)) {
		if (item->type == KSMBD_NOTIFY_ITEM_TYPE_WATCH)
			item_watch(item)->rescan = item_watch(item)->promised;
		list_add(&item->entry, &notify_items);
	} else {
		item_put(item);
	}
out:
	spin_unlock(&notify_lock);
}

static __le32 errno_status(int err)
{
	switch (err) {
	case ENOMEM:
	case ENOSPC:
	case EMFILE:
	case ENFILE:
		return STATUS_INSUFFICIENT_RESOURCES;
	case EACCES:
	case EPERM:
		return STATUS_ACCESS_DENIED;
	case ENOENT:
	case ESTALE:
		return STATUS_DELETE_PENDING;
	case ENOSYS: /* turned off: as if there was no notify */
		return STATUS_NOT_IMPLEMENTED;
	default:
		return STATUS_NOT_SUPPORTED;
	}
}

/**
 * ksmbd_notify_armed() - the watch of the item handed out last is not armed
 * @daemon:	port id of the calling socket
 * @id:		watch id
 * @err:	why, a positive errno
 *
 * Return:	0, -EPERM if @daemon is not registered, -ENOENT for no watch
 */
int ksmbd_notify_armed(u32 daemon, u64 id, int err)
{
	struct ksmbd_notify_request *req;
	struct notify_watch *watch;
	int rc = -ENOENT;

	spin_lock(&notify_lock);
	if (daemon != notify_daemon) {
		rc = -EPERM;
		goto out;
	}
	if (!notify_inflight)
		goto out;
	watch = item_is_request(notify_inflight) ?
			item_request(notify_inflight)->watch :
			item_watch(notify_inflight);
	if (watch->item.id != id || !watch->fp)
		goto out;
	/* No STATUS_PENDING for what never pended, and no unwatch. */
	list_for_each_entry(req, &watch->requests, entry)
		req->refused = !req->handled;
	watch->known = false;
	watch_close(watch, errno_status(err), NULL);
	rc = 0;
out:
	spin_unlock(&notify_lock);
	return rc;
}

/**
 * ksmbd_notify_claim() - the daemon is about to complete a request
 * @daemon:	port id of the calling socket
 * @id:		request id
 * @size:	bytes that ksmbd_notify_add() may need in all
 *
 * Until ksmbd_notify_complete() the caller has the identity of the request's
 * user, and nobody else can end the request.
 *
 * Return:	the request or an ERR_PTR: -EPERM if @daemon is not registered,
 *		-ENOENT if the request is gone, -ENOMEM
 */
struct ksmbd_notify_request *ksmbd_notify_claim(u32 daemon, u64 id,
						size_t size)
{
	struct ksmbd_notify_request *req, *found = ERR_PTR(-ENOENT);
	void *response;

	/* smbConvertToUTF16() terminates its output: one unit more. */
	response = kvzalloc(sizeof(__be32) +
			    sizeof(struct smb2_change_notify_rsp) +
			    size + sizeof(__le16), KSMBD_DEFAULT_GFP);
	if (!response)
		return ERR_PTR(-ENOMEM);

	spin_lock(&notify_lock);
	if (daemon != notify_daemon) {
		found = ERR_PTR(-EPERM);
		goto out;
	}
	hash_for_each_possible(notify_requests, req, hash, id) {
		if (req->item.id != id || !req->known)
			continue;
		found = req;
		/* It stays with its watch: who ends that notes a status. */
		req->taken = true;
		hash_del(&req->hash);
		request_set_handled(req);
		req->watch->promised = true;
		req->response = response;
		req->dir = get_file(req->watch->dir);
		response = NULL;
		break;
	}
out:
	spin_unlock(&notify_lock);
	kvfree(response);
	/* Without an identity to check, nothing can be told. */
	if (!IS_ERR(found) && ksmbd_override_fsids(found->work))
		found->lost = true;
	return found;
}

static bool is_vetoed(struct ksmbd_notify_request *req, const char *name,
		      int len)
{
	struct ksmbd_share_config *share = req->work->tcon->share_conf;
	char *copy, *rest, *component;
	bool vetoed = false;

	if (list_empty(&share->veto_list))
		return false;
	copy = kmemdup_nul(name, len, KSMBD_DEFAULT_GFP);
	if (!copy) {
		req->lost = true;
		return true;
	}
	rest = copy;
	while (!vetoed && (component = strsep(&rest, "/")))
		vetoed = ksmbd_share_veto_filename(share, component);
	kfree(copy);
	return vetoed;
}

static int any_dentry(void *context, struct dentry *dentry)
{
	return 1;
}

/* Whether the user may list a directory that can be got to. */
static bool is_listable(struct ksmbd_notify_request *req,
			const struct path *path)
{
	struct ksmbd_work *work = req->work;

	if (inode_permission(mnt_idmap(path->mnt), d_inode(path->dentry),
			     MAY_READ | MAY_EXEC))
		return false;
	return !test_share_config_flag(work->tcon->share_conf,
				       KSMBD_SHARE_FLAG_ACL_XATTR) ||
	       notify_dacl_grants(work->conn, path, FILE_LIST_DIRECTORY_LE,
				  work->sess->user->uid);
}

static bool is_handle_of(const struct file_handle *fh, struct inode *inode)
{
	u32 fid[MAX_HANDLE_SZ / sizeof(u32)];
	int words = ARRAY_SIZE(fid), type;

	type = exportfs_encode_fid(inode, (struct fid *)fid, &words);
	return type == fh->handle_type &&
	       words * sizeof(u32) == fh->handle_bytes &&
	       !memcmp(fid, fh->f_handle, fh->handle_bytes);
}

/* Looks up the directory that @name is in, from the watched one. */
static int lookup_parent(struct ksmbd_notify_request *req, const char *name,
			 int len, unsigned int flags, struct path *path)
{
	const struct path *top = &req->dir->f_path;
	char *copy;
	int err;

	copy = kmemdup_nul(name, len, KSMBD_DEFAULT_GFP);
	if (!copy)
		return -ENOMEM;
	*strrchr(copy, '/') = '\0';
	err = vfs_path_lookup(top->dentry, top->mnt, copy,
			      LOOKUP_DIRECTORY | LOOKUP_BENEATH |
			      LOOKUP_NO_SYMLINKS | flags, path);
	kfree(copy);
	return err;
}

static bool can_open_handles(struct ksmbd_notify_request *req)
{
	return exportfs_can_decode_fh(file_inode(req->dir)->i_sb->s_export_op);
}

/*
 * Finds the directory @fh, that @name is in, where handles cannot be opened, as
 * on overlayfs without nfs_export. By that name it may be another by now.
 */
static struct dentry *find_named(struct ksmbd_notify_request *req,
				 const struct file_handle *fh,
				 const char *name, int len)
{
	struct dentry *dentry = NULL;
	const struct cred *user;
	struct path path;

	/* With the daemon's rights: it is not known yet of what to ask the user's. */
	user = override_creds(req->work->saved_cred);
	if (!lookup_parent(req, name, len, LOOKUP_NO_XDEV, &path)) {
		if (is_handle_of(fh, d_inode(path.dentry)))
			dentry = dget(path.dentry);
		path_put(&path);
	}
	revert_creds(user);
	return dentry;
}

/*
 * Whether the user may list the directory @fh, that @name is in, and get there
 * from the watched one: 1, 0, or -ENOENT if it is not below that any more.
 */
static int may_list(struct ksmbd_notify_request *req,
		    const struct file_handle *fh, const char *name, int len)
{
	struct path path = { .mnt = req->dir->f_path.mnt };
	struct dentry *dentry, *parent;
	int may;

	if (can_open_handles(req))
		path.dentry = exportfs_decode_fh(path.mnt,
						 (struct fid *)fh->f_handle,
						 fh->handle_bytes >> 2,
						 fh->handle_type, any_dentry,
						 NULL);
	else
		path.dentry = find_named(req, fh, name, len);
	if (IS_ERR_OR_NULL(path.dentry))
		return -ENOENT;

	may = is_listable(req, &path);
	for (dentry = dget(path.dentry);
	     may >= 0 && dentry != req->dir->f_path.dentry; dentry = parent) {
		if (IS_ROOT(dentry) || d_unhashed(dentry))
			may = -ENOENT;
		else if (inode_permission(mnt_idmap(path.mnt), d_inode(dentry),
					  MAY_EXEC))
			may = 0;
		parent = dget_parent(dentry);
		dput(dentry);
	}
	dput(dentry);
	dput(path.dentry);
	return may;
}

/*
 * The same of the directory that @name is in, below another mount. There is
 * no handle for it, and unless the share crosses mounts no listing either.
 */
static int may_list_mounted(struct ksmbd_notify_request *req, const char *name,
			    int len)
{
	struct path path;
	int may;

	if (!test_share_config_flag(req->work->tcon->share_conf,
				    KSMBD_SHARE_FLAG_CROSSMNT))
		return 0;
	may = lookup_parent(req, name, len, 0, &path);
	if (may)
		return may == -EACCES ? 0 : -ENOENT;
	may = is_listable(req, &path);
	path_put(&path);
	return may;
}

static bool same_handle(const struct file_handle *a,
			const struct file_handle *b)
{
	return a->handle_bytes == b->handle_bytes &&
	       !memcmp(a, b, sizeof(*a) + a->handle_bytes);
}

static struct notify_verdict *verdict_find(struct notify_watch *watch,
					   const struct file_handle *fh)
{
	struct notify_verdict *verdict;

	lockdep_assert_held(&notify_lock);

	list_for_each_entry(verdict, &watch->verdicts, entry)
		if (same_handle((void *)verdict->handle, fh)) {
			list_move(&verdict->entry, &watch->verdicts);
			return verdict;
		}
	return NULL;
}

/* Keeps what was found, for when the directory is gone. */
static void verdict_keep(struct notify_watch *watch,
			 const struct file_handle *fh, bool may)
{
	size_t len = sizeof(*fh) + fh->handle_bytes;
	struct notify_verdict *verdict, *spare;

	spare = kmalloc(struct_size(spare, handle, len), KSMBD_DEFAULT_GFP);
	if (spare)
		memcpy(spare->handle, fh, len);

	spin_lock(&notify_lock);
	verdict = verdict_find(watch, fh);
	if (!verdict && spare) {
		verdict = spare;
		spare = NULL;
		if (watch->verdict_count == NOTIFY_MAX_VERDICTS) {
			spare = list_last_entry(&watch->verdicts,
						struct notify_verdict, entry);
			list_del(&spare->entry);
		} else {
			watch->verdict_count++;
		}
		list_add(&verdict->entry, &watch->verdicts);
	}
	if (verdict)
		verdict->may = may;
	spin_unlock(&notify_lock);
	kfree(spare);
}

/* What was found last of a directory that is gone, or -ENOENT. */
static int verdict_recall(struct notify_watch *watch,
			  const struct file_handle *fh)
{
	struct notify_verdict *verdict;
	int may = -ENOENT;

	spin_lock(&notify_lock);
	verdict = verdict_find(watch, fh);
	if (verdict)
		may = verdict->may;
	spin_unlock(&notify_lock);
	return may;
}

/*
 * Whether the user could not have seen @name, whose directory is gone, in any
 * case. Nobody can tell that of the directory itself, but of what is above it.
 */
static bool was_hidden(struct ksmbd_notify_request *req, const char *name,
		       int len)
{
	char *copy = kmemdup_nul(name, len, KSMBD_DEFAULT_GFP);
	const struct path *top = &req->dir->f_path;
	struct path path;
	bool hidden = false;
	int err = -ENOENT;
	char *end;

	if (!copy)
		return false;
	*strrchr(copy, '/') = '\0';
	while (err && !hidden && (end = strrchr(copy, '/'))) {
		*end = '\0';
		err = vfs_path_lookup(top->dentry, top->mnt, copy,
				      LOOKUP_DIRECTORY | LOOKUP_BENEATH |
				      LOOKUP_NO_SYMLINKS, &path);
		if (!err) {
			hidden = inode_permission(mnt_idmap(path.mnt),
						  d_inode(path.dentry),
						  MAY_EXEC);
			path_put(&path);
		} else if (err == -EACCES) {
			hidden = true;
		}
	}
	kfree(copy);
	return hidden;
}

static bool may_see(struct ksmbd_notify_request *req, const char *name, int len,
		    const struct file_handle *fh)
{
	if (is_vetoed(req, name, len))
		return false;
	if (!fh)
		return true;
	if (fh->handle_type == FILEID_INVALID) {
		req->may_list = may_list_mounted(req, name, len);
		fh = NULL;
	} else if (!req->listed || !same_handle(req->listed, fh)) {
		req->may_list = may_list(req, fh, name, len);
		/* What was not found by its name need not be gone. */
		if (can_open_handles(req)) {
			if (req->may_list < 0)
				req->may_list = verdict_recall(req->watch, fh);
			else
				verdict_keep(req->watch, fh, req->may_list);
		}
	}
	req->listed = fh;
	/* Neither to be told nor to be kept quiet about: list it anew. */
	if (req->may_list < 0 && !was_hidden(req, name, len))
		req->lost = true;
	return req->may_list > 0;
}

/**
 * ksmbd_notify_add() - add a change record to a claimed request
 * @req:	the request
 * @action:	enum ksmbd_notify_action
 * @name:	name relative to the watched directory
 * @len:	its length in bytes
 * @fh:		the directory that the name is in, or NULL for the watched one;
 *		must stay until the request is completed
 *
 * What the user may not see is withheld.
 */
void ksmbd_notify_add(struct ksmbd_notify_request *req, u32 action,
		      const char *name, int len, const struct file_handle *fh)
{
	struct smb2_change_notify_rsp *rsp = smb_get_msg(req->response);
	u32 off = ALIGN(req->length, 4);
	struct notify_information *info = (void *)(rsp->Buffer + off);
	bool old_withheld = req->old_withheld;
	int i, units;

	if (req->lost)
		return;
	if (!may_see(req, name, len, fh)) {
		/* Of a rename, the half that is told stands alone. */
		req->old_withheld =
			action == KSMBD_NOTIFY_ACTION_RENAMED_OLD_NAME;
		if (action == KSMBD_NOTIFY_ACTION_RENAMED_NEW_NAME &&
		    req->last && !old_withheld)
			req->last->action =
				cpu_to_le32(KSMBD_NOTIFY_ACTION_REMOVED);
		return;
	}
	if (action == KSMBD_NOTIFY_ACTION_RENAMED_NEW_NAME && old_withheld)
		action = KSMBD_NOTIFY_ACTION_ADDED;
	req->old_withheld = false;

	if (req->last)
		req->last->next = cpu_to_le32((u8 *)info - (u8 *)req->last);
	req->last = info;

	/* As QUERY_DIRECTORY names it, but for the separator. */
	units = smbConvertToUTF16(info->name, name, len,
				  req->work->conn->local_nls, 0);
	for (i = 0; i < units; i++)
		if (get_unaligned_le16(&info->name[i]) == '/')
			put_unaligned_le16('\\', &info->name[i]);
	info->next = 0;
	info->action = cpu_to_le32(action);
	info->name_length = cpu_to_le32(units * sizeof(__le16));
	req->length = off + sizeof(*info) + units * sizeof(__le16);
}

/* All records were withheld: @req goes on as if they had never been. */
static void request_unclaim(struct ksmbd_notify_request *req)
{
	lockdep_assert_held(&notify_lock);

	if (req->status) {
		list_del_init(&req->entry);
		request_finish(req, req->status);
		return;
	}
	req->taken = false;
	hash_add(notify_requests, &req->hash, req->item.id);
	request_send(req);
}

/**
 * ksmbd_notify_complete() - end a claimed request
 * @req:	the request
 * @status:	0 for records, or enum ksmbd_notify_status
 *
 * Return:	0, or -ENODATA if all records were withheld and the request
 *		still pends
 */
int ksmbd_notify_complete(struct ksmbd_notify_request *req, u32 status)
{
	__le32 nt_status = STATUS_SUCCESS;
	int err = 0;

	if (req->work->saved_cred)
		ksmbd_revert_fsids(req->work);
	fput(req->dir);
	req->dir = NULL;

	if (status == KSMBD_NOTIFY_STATUS_DELETE_PENDING)
		nt_status = STATUS_DELETE_PENDING;
	else if (status || req->lost || req->length > req->limit)
		nt_status = STATUS_NOTIFY_ENUM_DIR;
	else if (!req->length)
		err = -ENODATA;

	if (err) {
		kvfree(req->response);
		req->response = NULL;
		req->listed = NULL;
	}

	spin_lock(&notify_lock);
	if (err) {
		request_unclaim(req);
	} else {
		list_del_init(&req->entry);
		req->status = nt_status;
		req->done = true;
		request_send(req);
	}
	spin_unlock(&notify_lock);
	return err;
}

int ksmbd_notify_init(void)
{
	int err;

	notify_wq = alloc_workqueue("ksmbd-notify", WQ_UNBOUND, 0);
	if (!notify_wq)
		return -ENOMEM;
	err = ksmbd_notify_netlink_init();
	if (err)
		destroy_workqueue(notify_wq);
	return err;
}

/* After all connections are gone, and their requests and watches with them. */
void ksmbd_notify_exit(void)
{
	ksmbd_notify_netlink_exit();
	ksmbd_notify_unregister(notify_daemon);
	cancel_delayed_work_sync(&notify_timeout);
	cancel_delayed_work_sync(&notify_bell);
	destroy_workqueue(notify_wq);
}
