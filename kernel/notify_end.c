// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Ends of watches and requests that come from SMB.
 */

#include <linux/fs.h>

#include "notify_impl.h"

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
	struct ksmbd_notify_conn *nc = &work->conn->notify;
	const struct smb2_hdr *of;
	struct ksmbd_work *iter;

	lockdep_assert_held(&work->conn->request_lock);

	list_for_each_entry(iter, &work->conn->async_requests,
			    async_request_entry) {
		if (iter->cancel_fn != notify_cancel_fn ||
		    iter->state != KSMBD_WORK_ACTIVE)
			continue;
		of = smb_get_msg(iter->request_buf);
		if (of->SessionId != hdr->SessionId ||
		    (hdr->MessageId && of->MessageId != hdr->MessageId))
			continue;
		iter->state = KSMBD_WORK_CANCELLED;
		iter->cancel_fn(iter->cancel_argv);
		return;
	}
	/* Not parked yet, not even decrypted perhaps: see notify_overtaken(). */
	if (hdr->MessageId) {
		nc->cancelled[nc->cancels++ % ARRAY_SIZE(nc->cancelled)] =
			hdr->MessageId;
		return;
	}
	nc->session = hdr->SessionId;
	list_for_each_entry(iter, &work->conn->requests, request_entry)
		if (iter != work)
			iter->notify_cancels++;
}

/**
 * ksmbd_notify_cancelled() - CANCEL has been handled
 * @conn:	connection it came by, conn->request_lock not held
 *
 * What it ends is answered here and not by the work item: so the answer goes
 * before that to what the client sends next, as smbtorture expects it.
 */
void ksmbd_notify_cancelled(struct ksmbd_conn *conn)
{
	bool claimed;

	spin_lock(&notify_lock);
	claimed = conn->notify.claimed;
	conn->notify.claimed = false;
	spin_unlock(&notify_lock);
	if (claimed)
		notify_conn_send(conn);
}

/**
 * notify_overtaken() - whether CANCEL has come before a request is parked
 * @work:	smb work with the request, conn->request_lock held
 * @mid:	the request's MessageId
 *
 * Return:	whether the request is to end at once
 */
bool notify_overtaken(struct ksmbd_work *work, __le64 mid)
{
	struct ksmbd_notify_conn *nc = &work->conn->notify;
	struct ksmbd_work *iter;
	unsigned int i;

	lockdep_assert_held(&work->conn->request_lock);

	for (i = 0; i < ARRAY_SIZE(nc->cancelled); i++)
		if (nc->cancelled[i] == mid)
			return true;
	if (!work->notify_cancels ||
	    nc->session != cpu_to_le64(work->sess->id))
		/* The state of a compound is that of its first request. */
		return !work->next_smb2_rcv_hdr_off &&
		       work->state == KSMBD_WORK_CANCELLED;
	/* One CANCEL of the oldest ends one request. */
	list_for_each_entry(iter, &work->conn->requests, request_entry)
		if (iter->notify_cancels)
			iter->notify_cancels--;
	return true;
}

static void watch_end_requests(struct notify_watch *watch, __le32 status)
{
	struct ksmbd_notify_request *req, *tmp;

	lockdep_assert_held(&notify_lock);

	list_for_each_entry_safe(req, tmp, &watch->requests, entry)
		notify_request_end(req, status);
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
	if (fp->notify) {
		watch_end_requests(fp->notify, STATUS_NOTIFY_CLEANUP);
		if (!fp->conn)
			notify_watch_doubt(fp->notify);
	}
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
		notify_watch_close(fp->notify, STATUS_NOTIFY_CLEANUP, work);
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
 * ksmbd_notify_releasing() - a connection ends, its requests have been ended
 * @conn:	the connection
 *
 * Nothing waits for the daemon to acknowledge those that were cancelled before.
 */
void ksmbd_notify_releasing(struct ksmbd_conn *conn)
{
	struct ksmbd_work *work;

	spin_lock(&conn->request_lock);
	spin_lock(&notify_lock);
	list_for_each_entry(work, &conn->async_requests, async_request_entry)
		if (work->cancel_fn == notify_cancel_fn)
			notify_request_promise(work->cancel_argv[0]);
	spin_unlock(&notify_lock);
	spin_unlock(&conn->request_lock);
}

/**
 * ksmbd_notify_session_failed() - a session has failed to log in again
 * @sess:	the session, whose handles nobody can use any more
 *
 * One whose Kerberos ticket has expired may still log in again. Until then it
 * may ask for nothing new, but what it has asked for goes on.
 */
void ksmbd_notify_session_failed(struct ksmbd_session *sess)
{
	struct ksmbd_file_table *ft = &sess->file_table;
	struct ksmbd_file *fp;
	unsigned int id;

	read_lock(&ft->lock);
	idr_for_each_entry(ft->idr, fp, id)
		ksmbd_notify_disconnect(fp);
	read_unlock(&ft->lock);
}
