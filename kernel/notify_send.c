// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The responses to CHANGE_NOTIFY. Only one at a time sends those of a connection:
 * its work item, or whoever made them fit to be sent, which saves waking a worker.
 *
 * None of them waits for the client, or for who else sends to it: what the socket
 * does not take now is tried again later, until the client has taken nothing
 * for as long as ksmbd waits for one elsewhere.
 *
 * None of them asks a filesystem either, which may hang. Where that has to be
 * asked what a user may see, a work item of the request does: of the requests of
 * a connection that watch one filesystem, one at a time.
 */

#include <linux/delay.h>
#include <linux/slab.h>
#include <linux/socket.h>

#include "notify_impl.h"

#define SEND_TIMEOUT	(5 * HZ)	/* as ksmbd has it, KSMBD_TCP_SEND_TIMEOUT */
#define SEND_MAX_DELAY	(HZ / 8)

/* Queues the connection's work item, which has a reference to it until it ran. */
static void send_after(struct ksmbd_conn *conn, unsigned long delay)
{
	struct workqueue_struct *wq = conn->transport->ops->rdma_read ?
					      notify_rdma_wq : notify_send_wq;

	ksmbd_conn_get(conn);
	if (mod_delayed_work(wq, &conn->notify.work, delay))
		ksmbd_conn_put(conn);
}

/* Has a work item free what @conn has answered: files may be closed then. */
static void conn_free(struct ksmbd_conn *conn)
{
	ksmbd_conn_get(conn);
	if (!queue_work(notify_ask_wq, &conn->notify.free))
		ksmbd_conn_put(conn);
}

/**
 * notify_conn_claim() - send the responses of a connection in this call
 * @conn:	the connection, of which nothing is to be sent yet
 *
 * Where that may wait it is left to the work item.
 *
 * Return:	whether the caller is to, by notify_conn_send() after notify_lock
 */
bool notify_conn_claim(struct ksmbd_conn *conn)
{
	struct ksmbd_notify_conn *nc = &conn->notify;

	lockdep_assert_held(&notify_lock);

	if (nc->sending || nc->out || !list_empty(&nc->send) ||
	    conn->transport->ops->rdma_read)
		return false;
	nc->sending = true;
	ksmbd_conn_get(conn);
	return true;
}

/* Queues @req if it has a response that can be sent now. */
void notify_request_send(struct ksmbd_notify_request *req)
{
	struct ksmbd_conn *conn = req->work->conn;

	lockdep_assert_held(&notify_lock);

	if (req->held || !req->handled ||
	    (req->interim && !req->told && !req->done))
		return;
	if (list_empty(&req->send))
		list_add_tail(&req->send, &conn->notify.send);
	if (!conn->notify.sending) /* or it is found there */
		send_after(conn, 0);
}

/* Builds the response of @req: header, records, signature, encryption. */
static int request_build(struct ksmbd_notify_request *req, __le32 status)
{
	struct ksmbd_work *work = req->work;
	struct ksmbd_conn *conn = work->conn;
	struct smb2_change_notify_rsp *rsp;
	u32 length = 0;
	int rc;

	/* The interim response may have been encrypted: start afresh. */
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

	if (work->sess->enc && work->encrypted && conn->ops->encrypt_resp)
		return conn->ops->encrypt_resp(work);
	return 0;
}

/*
 * Sends what is left of the response in @work. If the socket takes only a part,
 * @work becomes ksmbd_notify_conn.rest: nothing else may be sent before it.
 */
static int work_send(struct ksmbd_work *work, int flags)
{
	struct ksmbd_notify_conn *nc = &work->conn->notify;
	struct kvec *iov = work->iov;
	int i, n, sent, size = 0;

	lockdep_assert_held(&work->conn->srv_mutex);

	for (i = 0; i < work->iov_cnt; i++)
		size += iov[i].iov_len;
	sent = notify_writev(work->conn, iov, work->iov_cnt, size, flags);
	if (sent < 0)
		return sent;
	nc->stalled = 0;
	/* RDMA does not say how much it sent: it sends all. */
	nc->partial = sent && sent < size;
	if (!nc->partial) {
		nc->rest = NULL;
		return 0;
	}
	nc->rest = work;
	for (i = 0; sent; sent -= n, i++) {
		n = min_t(int, sent, iov[i].iov_len);
		iov[i].iov_base += n;
		iov[i].iov_len -= n;
	}
	return -EAGAIN;
}

/**
 * ksmbd_notify_write_rest() - finish a response that was sent in part
 * @conn:	connection, whose srv_mutex the caller holds to send something
 * @flags:	MSG_DONTWAIT or 0
 *
 * Return:	0 or a negative errno: nothing else may be sent then
 */
int ksmbd_notify_write_rest(struct ksmbd_conn *conn, int flags)
{
	struct ksmbd_work *rest;
	int rc;

	/* Pairs with request_write(), which makes it ready before. */
	rest = smp_load_acquire(&conn->notify.rest);
	if (likely(!rest))
		return 0;
	if (IS_ERR(rest))
		return PTR_ERR(rest);
	rc = work_send(rest, flags);
	if (rc && !(rc == -EAGAIN && flags & MSG_DONTWAIT))
		ksmbd_conn_abort(conn);
	send_after(conn, 0);
	return rc;
}

/* Returns 0, -EAGAIN if it is to be tried again, or what ends the connection. */
static int request_write(struct ksmbd_notify_request *req)
{
	struct ksmbd_conn *conn = req->work->conn;
	struct ksmbd_notify_conn *nc = &conn->notify;
	bool dead = conn_is_dead(conn);
	int rc = 0;

	if (IS_ERR(READ_ONCE(nc->rest)) || (dead && !req->begun))
		return -EPIPE;
	if (!mutex_trylock(&conn->srv_mutex)) {
		if (!req->begun) {
			/*
			 * Whoever gets the mutex next sends this first.
			 * Pairs with ksmbd_notify_write_rest().
			 */
			smp_store_release(&nc->rest, req->work);
			req->begun = true;
		}
		return -EAGAIN;
	}
	if (dead)
		rc = -EPIPE;
	else if (!req->begun || nc->rest) /* or somebody else has finished it */
		rc = work_send(req->work, MSG_DONTWAIT);
	if (rc == -EAGAIN) {
		if (!nc->stalled)
			nc->stalled = jiffies ?: 1;
		else if (time_after(jiffies, nc->stalled + SEND_TIMEOUT))
			rc = -ETIMEDOUT;
	}
	/* The client would take what comes next for the rest of this response. */
	if (rc != -EAGAIN)
		nc->rest = nc->partial ? ERR_PTR(-EPIPE) : NULL;
	req->begun = !IS_ERR_OR_NULL(nc->rest);
	mutex_unlock(&conn->srv_mutex);
	return rc;
}

/* Frees a request that nobody else can find any more. */
void notify_request_free(struct ksmbd_notify_request *req)
{
	struct ksmbd_work *work = req->work;
	struct ksmbd_conn *conn = work->conn;

	spin_lock(&conn->request_lock);
	list_del_init(&work->async_request_entry);
	conn->notify.pending--;
	spin_lock(&notify_lock);
	notify_request_charge(req, 0);
	spin_unlock(&notify_lock);
	spin_unlock(&conn->request_lock);

	if (work->tcon)
		ksmbd_tree_connect_put(work->tcon);
	ksmbd_user_session_put(work->sess);
	ksmbd_free_work_struct(work);
	kvfree(req->response);
	notify_item_put(&req->item);
	/* Teardown of the connection waits for this. */
	ksmbd_conn_r_count_dec(conn);
}

/*
 * Finds out how @req ends, which the daemon has completed, or what it is to be
 * completed with instead. notify_lock is dropped meanwhile.
 */
static void request_answer(struct ksmbd_notify_request *req)
	__must_hold(&notify_lock)
{
	struct notify_told *told = req->told;
	__le32 status = STATUS_NOTIFY_CLEANUP;

	lockdep_assert_held(&notify_lock);

	req->told = NULL;
	spin_unlock(&notify_lock);
	if (!conn_is_dead(req->work->conn))
		status = notify_request_fill(req, told);
	notify_told_free(told);

	spin_lock(&notify_lock);
	if (status == STATUS_PENDING) {
		notify_request_withheld(req);
		return;
	}
	list_del_init(&req->entry);
	req->status = status;
	req->done = true;
	if (req->watch->fp && conn_is_dead(req->work->conn))
		notify_watch_doubt(req->watch);
}

/* The first request of @conn that is asking @fs, or waits for that. */
static struct ksmbd_notify_request *conn_asks(struct ksmbd_conn *conn,
					      const struct super_block *fs)
{
	struct ksmbd_notify_request *req;

	lockdep_assert_held(&notify_lock);

	list_for_each_entry(req, &conn->notify.asks, send)
		if (req->watch->fs == fs)
			return req;
	return NULL;
}

/* Has a work item find out what the user of @req may see. */
static void request_ask(struct ksmbd_notify_request *req)
{
	struct ksmbd_conn *conn = req->work->conn;

	lockdep_assert_held(&notify_lock);

	if (!conn_asks(conn, req->watch->fs))
		queue_work(notify_ask_wq, &req->ask);
	list_add_tail(&req->send, &conn->notify.asks);
	req->watch->asks++;
}

/* Prepares the next response of @conn. Returns its request, or NULL if none is due. */
static struct ksmbd_notify_request *conn_next(struct ksmbd_conn *conn)
{
	struct ksmbd_notify_conn *nc = &conn->notify;
	struct ksmbd_notify_request *req;
	bool interim = false;

	spin_lock(&notify_lock);
	while ((req = list_first_entry_or_null(&nc->send,
					       struct ksmbd_notify_request,
					       send))) {
		list_del_init(&req->send);
		interim = !req->interim && !req->refused;
		/* It may have been on the list already when CLOSE held it. */
		req->final = !interim && req->done && !req->held;
		if (interim || req->final)
			break;
		if (!req->told)
			continue;
		/* The records of a watch keep their order. */
		if (req->told->below || req->watch->asks) {
			request_ask(req);
			continue;
		}
		request_answer(req);
		if (req->done || req->told)
			list_move(&req->send, &nc->send);
	}
	if (!req)
		nc->sending = false;
	spin_unlock(&notify_lock);

	/* A client must not wait for a response that was lost. */
	if (req && !conn_is_dead(conn) &&
	    request_build(req, interim ? STATUS_PENDING : req->status))
		ksmbd_conn_abort(conn);
	return req;
}

/* Drops what @work refers to, unless it is the last to: files may be closed then. */
static bool work_drop(struct ksmbd_work *work)
{
	if (!atomic_add_unless(&work->sess->refcnt, -1, 1))
		return false;
	work->sess = NULL;
	if (!atomic_add_unless(&work->tcon->refcount, -1, 1))
		return false;
	work->tcon = NULL;
	return true;
}

/* The response that conn_next() prepared is written, or the connection is dead. */
static void request_sent(struct ksmbd_notify_request *req)
{
	struct ksmbd_conn *conn = req->work->conn;

	if (req->final && work_drop(req->work)) {
		notify_request_free(req);
		return;
	}
	spin_lock(&notify_lock);
	if (req->final) {
		list_add(&req->send, &conn->notify.spent);
		conn_free(conn);
	} else {
		req->interim = true;
		if ((req->done || req->told) && list_empty(&req->send))
			list_add(&req->send, &conn->notify.send);
	}
	spin_unlock(&notify_lock);
}

/* Sends all that is due. The caller has set sending, so that the order is kept. */
static void conn_send(struct ksmbd_conn *conn)
{
	struct ksmbd_notify_conn *nc = &conn->notify;
	struct ksmbd_notify_request *req;
	int rc;

	while ((req = nc->out ?: conn_next(conn))) {
		nc->out = req;
		rc = request_write(req);
		if (rc == -EAGAIN) {
			nc->delay = clamp(2 * nc->delay, 1, SEND_MAX_DELAY);
			spin_lock(&notify_lock);
			nc->sending = false;
			send_after(conn, nc->delay);
			spin_unlock(&notify_lock);
			return;
		}
		if (rc)
			ksmbd_conn_abort(conn);
		nc->delay = 0;
		nc->out = NULL;
		request_sent(req);
	}
}

/**
 * notify_conn_send() - send the responses of a connection
 * @conn:	what notify_conn_claim() has given to the caller, or NULL
 */
void notify_conn_send(struct ksmbd_conn *conn)
{
	if (!conn)
		return;
	conn_send(conn);
	ksmbd_conn_put(conn);
}

static void notify_conn_work(struct work_struct *ws)
{
	struct ksmbd_conn *conn = container_of(to_delayed_work(ws),
					       struct ksmbd_conn, notify.work);
	bool sends;

	spin_lock(&notify_lock);
	sends = !conn->notify.sending;
	conn->notify.sending = true;
	spin_unlock(&notify_lock);
	if (sends)
		conn_send(conn);
	ksmbd_conn_put(conn);
}

/* Asks what the user of a request may see, and sends what comes of it. */
void notify_request_ask_work(struct work_struct *ws)
{
	struct ksmbd_notify_request *next, *req =
		container_of(ws, struct ksmbd_notify_request, ask);
	struct ksmbd_conn *conn = req->work->conn;

	spin_lock(&notify_lock);
	while (req->told)
		request_answer(req);
	list_del_init(&req->send);
	req->watch->asks--;
	next = conn_asks(conn, req->watch->fs);
	if (next)
		queue_work(notify_ask_wq, &next->ask);
	if (!notify_conn_claim(conn))
		conn = NULL;
	notify_request_send(req);
	spin_unlock(&notify_lock);
	notify_conn_send(conn);
}

static void notify_conn_free_work(struct work_struct *ws)
{
	struct ksmbd_conn *conn = container_of(ws, struct ksmbd_conn,
					       notify.free);
	struct ksmbd_notify_request *req, *tmp;
	LIST_HEAD(spent);

	spin_lock(&notify_lock);
	list_splice_init(&conn->notify.spent, &spent);
	spin_unlock(&notify_lock);
	list_for_each_entry_safe(req, tmp, &spent, send)
		notify_request_free(req);
	ksmbd_conn_put(conn);
}

void ksmbd_notify_conn_init(struct ksmbd_notify_conn *nc)
{
	static atomic64_t last_id;

	nc->id = atomic64_inc_return(&last_id);
	INIT_LIST_HEAD(&nc->send);
	INIT_LIST_HEAD(&nc->asks);
	INIT_LIST_HEAD(&nc->spent);
	INIT_DELAYED_WORK(&nc->work, notify_conn_work);
	INIT_WORK(&nc->free, notify_conn_free_work);
}

/* A request that nobody has ended is not waited for: its filesystem may hang. */
static bool conn_owes(struct ksmbd_conn *conn)
{
	struct ksmbd_notify_request *req;
	bool owes;

	spin_lock(&notify_lock);
	owes = conn->notify.sending || READ_ONCE(conn->notify.out) ||
	       !list_empty(&conn->notify.send);
	list_for_each_entry(req, &conn->notify.asks, send)
		owes |= req->status || req->done;
	spin_unlock(&notify_lock);
	return owes;
}

/**
 * ksmbd_notify_flush() - have what was ended sent
 * @conn:	connection, whose srv_mutex the caller must not hold
 *
 * TREE_DISCONNECT and LOGOFF answer after the requests that they end, if the
 * client takes what it is sent.
 */
void ksmbd_notify_flush(struct ksmbd_conn *conn)
{
	unsigned long until = jiffies + SEND_TIMEOUT;

	flush_delayed_work(&conn->notify.work);
	while (conn_owes(conn) && time_before(jiffies, until)) {
		msleep(20);
		flush_delayed_work(&conn->notify.work);
	}
}
