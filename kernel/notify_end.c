// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Ends of watches and requests that come from SMB.
 */

#include <linux/fs.h>

#include "notify_impl.h"

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
				notify_request_end(req, STATUS_NOTIFY_CLEANUP);
	spin_unlock(&notify_lock);
}
