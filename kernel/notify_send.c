// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The responses to CHANGE_NOTIFY, sent by one work item a connection.
 */

#include <linux/slab.h>

#include "notify_impl.h"

/* Something of @req may have become fit to be sent. */
void notify_request_send(struct ksmbd_notify_request *req)
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
void notify_request_free(struct ksmbd_notify_request *req)
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
	notify_item_put(&req->item);
	/* Teardown of the connection waits for this. */
	ksmbd_conn_r_count_dec(conn);
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
			notify_request_free(req);
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
