// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The handler for SMB2 CHANGE_NOTIFY, MS-SMB2 3.3.5.19: checks a request and
 * parks it.
 */

#include <linux/fs.h>
#include <linux/slab.h>

#include "notify_impl.h"
#include "smb2pdu.h"

/* What Windows allows, see MS-SMB2 3.3.5.19 on asynchronous requests. */
#define NOTIFY_MAX_PENDING	511

/* Called under conn->request_lock, as every cancel_fn. */
void notify_cancel_fn(void **argv)
{
	struct ksmbd_notify_request *req = argv[0];
	struct ksmbd_conn *conn = req->work->conn;
	bool dead = conn_is_dead(conn);

	spin_lock(&notify_lock);
	if (!dead && notify_conn_claim(conn))
		conn->notify.claimed = true;
	notify_request_end(req, dead ? STATUS_NOTIFY_CLEANUP : STATUS_CANCELLED);
	spin_unlock(&notify_lock);
}

/**
 * ksmbd_notify_async_id() - allocate an AsyncId
 * @conn:	connection that it is unique in
 *
 * An id that is free is not given at once again: a CANCEL that crosses the
 * response would end another request.
 *
 * Return:	the id or a negative errno
 */
int ksmbd_notify_async_id(struct ksmbd_conn *conn)
{
	unsigned int next = READ_ONCE(conn->notify.async_id) + 1U;
	int id = ida_alloc_min(&conn->async_ida, next, KSMBD_DEFAULT_GFP);

	if (id == -ENOSPC) /* or @next is beyond INT_MAX */
		id = ida_alloc_min(&conn->async_ida, 1, KSMBD_DEFAULT_GFP);
	if (id > 0)
		WRITE_ONCE(conn->notify.async_id, id);
	return id;
}

static struct notify_watch *watch_alloc(struct ksmbd_work *work,
					const struct smb2_change_notify_req *r)
{
	const char *user = user_name(work->sess->user);
	const char *share = work->tcon->share_conf->name;
	size_t user_size = strlen(user) + 1, share_size = strlen(share) + 1;
	struct notify_watch *watch;

	watch = kzalloc(struct_size(watch, user, user_size + share_size),
			KSMBD_DEFAULT_GFP);
	if (!watch)
		return NULL;
	INIT_LIST_HEAD(&watch->item.entry);
	INIT_LIST_HEAD(&watch->requests);
	INIT_LIST_HEAD(&watch->verdicts);
	refcount_set(&watch->item.refs, 1);
	watch->item.type = KSMBD_NOTIFY_ITEM_TYPE_WATCH;
	watch->client = work->conn->notify.id;
	watch->filter = le32_to_cpu(r->CompletionFilter);
	watch->ceiling = le32_to_cpu(r->OutputBufferLength);
	watch->tree = le16_to_cpu(r->Flags) & SMB2_WATCH_TREE;
	memcpy(watch->user, user, user_size);
	watch->share = watch->user + user_size;
	memcpy(watch->user + user_size, share, share_size);
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
	rsp->async_id = ksmbd_notify_async_id(work->conn);
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
	INIT_WORK(&req->ask, notify_request_ask_work);
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
	/* If it fails later, ksmbd_notify_session_failed() finds the request. */
	if (work->sess->state != SMB2_SESSION_VALID) {
		status = STATUS_NETWORK_SESSION_EXPIRED;
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
		watch->fs = file_inode(fp->filp)->i_sb;
		watch->dir = get_file(fp->filp);
		list_add_tail(&watch->entry, &notify_watches);
		fp->notify = watch;
	}
	if (fp)
		watch = fp->notify;
	/* Its client asks again, and so has got what it was told. */
	if (list_empty(&watch->requests))
		watch->told = false;
	refcount_inc(&watch->item.refs);
	req->watch = watch;
	req->item.id = ++notify_last_id;
	req->limit = min(req->limit, watch->ceiling);
	list_add_tail(&req->entry, &watch->requests);
	hash_add(notify_requests, &req->hash, req->item.id);

	hdr = smb_get_msg(req->work->request_buf);
	if (notify_overtaken(work, hdr->MessageId)) {
		req->work->state = KSMBD_WORK_CANCELLED;
		notify_request_end(req, STATUS_CANCELLED);
	} else if (!fp) {
		notify_request_end(req, STATUS_NOTIFY_CLEANUP);
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
	notify_item_put(&watch->item);

	/* The interim response grants what the whole compound has earned. */
	spin_lock(&conn->credits_lock);
	rc = conn->ops->set_rsp_credits(work);
	spin_unlock(&conn->credits_lock);
	if (rc) {
		/* Nothing has been sent for it yet: undo it. */
		spin_lock(&notify_lock);
		notify_request_end(req, STATUS_INVALID_PARAMETER);
		spin_unlock(&notify_lock);
		notify_request_free(req);
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

/* A parked request is the last of a compound: those before it are answered now. */
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
	bool first = !work->next_smb2_rcv_hdr_off;
	struct ksmbd_conn *conn = work->conn;
	const struct smb2_hdr *last = ksmbd_resp_buf_curr(work);
	struct ksmbd_file *fp;
	__le32 status;

	if (r->hdr.Flags & SMB2_FLAGS_RELATED_OPERATIONS) {
		/* MS-SMB2 3.3.5.2.7.2: there is nothing before it. */
		if (first)
			return STATUS_INVALID_PARAMETER;
		/* Severity error: there is no handle because of it. */
		if (!has_file_id(id) && !has_file_id(work->compound_fid) &&
		    le32_to_cpu(last->Status) >> 30 == 3)
			return last->Status;
	}
	if (r->hdr.NextCommand)
		return STATUS_INTERNAL_ERROR;

	/*
	 * macOS asks without a handle, all of whose bits are set, when it looks
	 * for Time Machine volumes: it expects to be told that the watch has
	 * ended, not that it failed.
	 */
	if (first && !~id && !~pid)
		return request_park(work, NULL, r);

	fp = ksmbd_lookup_fd_slow(work, id, pid);
	if (!fp) /* IPC$ has pipes, and nothing that could be watched */
		return test_share_config_flag(work->tcon->share_conf,
					      KSMBD_SHARE_FLAG_PIPE) ?
		       STATUS_INVALID_PARAMETER : STATUS_FILE_CLOSED;

	/* The checks of MS-SMB2 3.3.5.19, in its order. */
	if (length > conn->vals->max_trans_size ||
	    (conn->vals->req_capabilities & SMB2_GLOBAL_CAP_LARGE_MTU &&
	     DIV_ROUND_UP(length, SMB2_MAX_BUFFER_SIZE) >
	     max_t(u16, le16_to_cpu(r->hdr.CreditCharge), 1)))
		status = STATUS_INVALID_PARAMETER;
	else if (!S_ISDIR(file_inode(fp->filp)->i_mode) || ksmbd_stream_fd(fp))
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
 * smb2_notify() - handler for SMB2 CHANGE_NOTIFY
 * @work:	smb work with the request
 *
 * Return:	0, always: a refusal is an answer
 */
int smb2_notify(struct ksmbd_work *work)
{
	struct smb2_change_notify_req *req = ksmbd_req_buf_next(work);
	struct smb2_hdr *rsp_hdr = ksmbd_resp_buf_next(work);
	__le32 status;

	/* A related request may have none, and a CLOSE after it reads it here. */
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
