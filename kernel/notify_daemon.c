// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What the daemon asks: items, and the completion of requests.
 */

#include <linux/file.h>
#include <linux/fs.h>
#include <linux/minmax.h>
#include <linux/mm.h>
#include <linux/sizes.h>
#include <linux/slab.h>

#include "notify_impl.h"

static u32 notify_registrations;		/* of all daemons so far */

/* Of change records that wait to be sent: on a connection, and in all. */
#define NOTIFY_MAX_CONN_BYTES	(2 * SMB3_MAX_IOSIZE)
#define NOTIFY_MAX_BYTES						\
	min_t(unsigned long, SZ_64M, totalram_pages() << (PAGE_SHIFT - 4))
/* A longer response is encrypted and sent by a work item, not by the daemon. */
#define NOTIFY_SEND_HERE	SZ_8K

static void notify_offer_all(void)
{
	struct ksmbd_notify_request *req;
	struct notify_watch *watch;

	list_for_each_entry(watch, &notify_watches, entry) {
		notify_item_queue(&watch->item, KSMBD_NOTIFY_ITEM_TYPE_WATCH);
		list_for_each_entry(req, &watch->requests, entry)
			if (req->offered && !req->taken)
				notify_item_queue(&req->item,
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
		notify_progress = jiffies;
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
	struct hlist_node *following;
	struct notify_watch *watch;
	int bucket;

	spin_lock(&notify_lock);
	if (notify_daemon != daemon)
		goto out;
	notify_daemon = 0;
	hash_for_each_safe(notify_flight, bucket, following, item, flight)
		notify_item_land(item);
	list_for_each_entry_safe(item, next, &notify_items, entry)
		notify_item_unqueue(item);
	list_for_each_entry_safe(item, next, &notify_ends, entry)
		notify_item_unqueue(item);

	list_for_each_entry(watch, &notify_watches, entry) {
		watch->known = false;
		watch->armed = false;
		watch->rescan = watch->promised;
		list_for_each_entry(req, &watch->requests, entry)
			req->known = false;
	}
	list_for_each_entry_safe(req, tmp, &notify_waiting, waiting)
		notify_request_promise(req);
out:
	spin_unlock(&notify_lock);
}

/* Removes the next item from its queue; @end says which queue goes first. */
static struct notify_item *notify_item_pop(bool end)
{
	struct list_head *queue = end ? &notify_ends : &notify_items;
	struct notify_item *item;

	if (list_empty(queue))
		queue = end ? &notify_items : &notify_ends;
	item = list_first_entry_or_null(queue, struct notify_item, entry);
	if (item)
		list_del_init(&item->entry);
	return item;
}

/**
 * ksmbd_notify_next() - hand out items
 * @daemon:	port id of the calling socket
 * @to:		where to; the caller puts what it refers to
 * @max:	how many at most
 * @all:	set to whether that is all there is
 *
 * What clients wait for goes first, but takes no more than half of the room:
 * each request that has been cancelled meanwhile makes an end.
 *
 * Return:	how many, or -EPERM if @daemon is not registered
 */
int ksmbd_notify_next(u32 daemon, struct ksmbd_notify_next *to, int max,
		      bool *all)
{
	struct ksmbd_notify_request *req;
	struct notify_watch *watch;
	struct notify_item *item;
	int n = -EPERM;

	spin_lock(&notify_lock);
	if (daemon != notify_daemon)
		goto out;
	for (n = 0; n < max; n++, to++) {
		item = notify_item_pop(n >= max / 2);
		if (!item)
			break;
		/* The queue's reference becomes the caller's. */
		*to = (struct ksmbd_notify_next){
			.type = item->type, .item = item, .fd = -1,
		};
		switch (item->type) {
		case KSMBD_NOTIFY_ITEM_TYPE_WATCH:
			watch = item_watch(item);
			to->dir = get_file(watch->dir);
			to->rescan = watch->rescan;
			watch->rescan = false;
			watch->known = true;
			break;
		case KSMBD_NOTIFY_ITEM_TYPE_REQUEST:
			req = item_request(item);
			req->known = true;
			if (req->taken)
				notify_item_queue(item,
						  KSMBD_NOTIFY_ITEM_TYPE_CANCEL);
			break;
		default:
			continue;
		}
		if (!hash_hashed(&item->flight)) {
			refcount_inc(&item->refs);
			hash_add(notify_flight, &item->flight, item->id);
		}
	}
	*all = list_empty(&notify_items) && list_empty(&notify_ends);
out:
	spin_unlock(&notify_lock);
	return n;
}

/* Whether @daemon, the port id of the calling socket, is registered. */
bool ksmbd_notify_registered(u32 daemon)
{
	return daemon == READ_ONCE(notify_daemon);
}

/**
 * ksmbd_notify_unnext() - items that were handed out did not reach the daemon
 * @daemon:	port id of the calling socket
 * @from:	the items, whose references to items are given back
 * @n:		how many
 */
void ksmbd_notify_unnext(u32 daemon, struct ksmbd_notify_next *from, int n)
{
	struct notify_item *item;

	spin_lock(&notify_lock);
	while (n--) {
		item = from[n].item;
		if (daemon != notify_daemon)
			goto put;
		switch (from[n].type) {
		case KSMBD_NOTIFY_ITEM_TYPE_WATCH:
			notify_item_land(item);
			item_watch(item)->known = item_watch(item)->armed;
			item_watch(item)->rescan |= from[n].rescan;
			if (!item_watch(item)->fp)
				goto put;
			break;
		case KSMBD_NOTIFY_ITEM_TYPE_REQUEST:
			notify_item_land(item);
			item_request(item)->known = false;
			/* It has ended, and nobody waits for the daemon. */
			if (item_request(item)->taken &&
			    item_request(item)->handled)
				goto put;
			/* ksmbd_notify_next() may have queued it as CANCEL. */
			notify_item_unqueue(item);
			item->type = KSMBD_NOTIFY_ITEM_TYPE_REQUEST;
			break;
		}
		if (list_empty(&item->entry)) {
			list_add(&item->entry, notify_queue(from[n].type));
			continue;
		}
put:
		notify_item_put(item);
	}
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
	case ECANCELED: /* turned off: as if there was no notify */
		return STATUS_NOT_IMPLEMENTED;
	default:
		return STATUS_NOT_SUPPORTED;
	}
}

/* The daemon cannot watch: an error instead of STATUS_PENDING, and no UNWATCH. */
static void watch_refuse(struct notify_watch *watch, int err)
{
	struct ksmbd_notify_request *req;

	lockdep_assert_held(&notify_lock);

	if (!watch->fp)
		return;
	list_for_each_entry(req, &watch->requests, entry)
		req->refused = !req->handled;
	watch->known = false;
	notify_watch_close(watch, errno_status(err), NULL);
}

static void watch_arm(struct notify_watch *watch)
{
	lockdep_assert_held(&notify_lock);

	if (!watch->fp)
		return;
	watch->armed = true;
	/* STATUS_PENDING was sent before this. */
	if (watch->rescan)
		notify_item_queue(&watch->item, KSMBD_NOTIFY_ITEM_TYPE_WATCH);
}

/**
 * ksmbd_notify_ack() - the daemon has handled an item
 * @daemon:	port id of the calling socket
 * @id:		of the watch or request that the item was about
 * @err:	0, or a positive errno: the watch, or the request's, is not armed,
 *		or is not to be any more
 *
 * Return:	0, -EPERM if @daemon is not registered, -ENOENT for no such item
 */
int ksmbd_notify_ack(u32 daemon, u64 id, int err)
{
	struct ksmbd_notify_request *req;
	struct ksmbd_conn *conn = NULL;
	struct notify_item *item;
	int rc = -ENOENT;

	spin_lock(&notify_lock);
	if (daemon != notify_daemon) {
		rc = -EPERM;
		goto out;
	}
	hash_for_each_possible(notify_flight, item, flight, id)
		if (item->id == id)
			break;
	if (!item && err) /* the error comes after the timeout */
		hash_for_each_possible(notify_requests, req, hash, id)
			if (req->item.id == id && req->known)
				item = &req->item;
	if (!item)
		goto out;
	rc = 0;
	notify_progress = jiffies;
	refcount_inc(&item->refs);
	notify_item_land(item);
	if (item_is_request(item)) {
		req = item_request(item);
		if (err)
			watch_refuse(req->watch, err);
		else if (!req->handled && notify_conn_claim(req->work->conn))
			conn = req->work->conn;
		/* A cancelled request waits for this, refused or not. */
		notify_request_promise(req);
	} else if (err) {
		watch_refuse(item_watch(item), err);
	} else {
		watch_arm(item_watch(item));
	}
	notify_item_put(item);
out:
	spin_unlock(&notify_lock);
	notify_conn_send(conn);
	return rc;
}

/* For what is too much to be kept until it can be sent. */
static struct notify_told notify_too_much = {
	.status = KSMBD_NOTIFY_STATUS_ENUM_DIR,
};

void notify_told_free(struct notify_told *told)
{
	if (!told || told == &notify_too_much)
		return;
	if (told->dir)
		fput(told->dir);
	kvfree(told);
}

/* Counts so many bytes of @req as waiting to be sent. */
void notify_request_charge(struct ksmbd_notify_request *req, size_t bytes)
{
	lockdep_assert_held(&notify_lock);

	req->work->conn->notify.bytes += bytes - req->bytes;
	notify_bytes += bytes - req->bytes;
	req->bytes = bytes;
}

/*
 * Whether so many bytes of @req may wait to be sent. A client that does not read
 * has what waits for it bounded, and all of them have; who reads may always
 * have one response of a usual size.
 */
static bool request_account(struct ksmbd_notify_request *req, size_t bytes)
{
	struct ksmbd_notify_conn *nc = &req->work->conn->notify;

	lockdep_assert_held(&notify_lock);

	if (nc->bytes + bytes > NOTIFY_MAX_CONN_BYTES)
		return false;
	if (notify_bytes + bytes > NOTIFY_MAX_BYTES &&
	    (nc->bytes || bytes > SZ_64K))
		return false;
	notify_request_charge(req, bytes);
	return true;
}

/*
 * @req, which was taken, goes on as if nothing had been told, unless it has
 * ended meanwhile.
 */
static void request_offer_again(struct ksmbd_notify_request *req)
{
	lockdep_assert_held(&notify_lock);

	notify_request_charge(req, 0);
	if (req->status) {
		list_del_init(&req->entry);
		notify_request_finish(req, req->status);
		return;
	}
	req->taken = false;
	hash_add(notify_requests, &req->hash, req->item.id);
	if (notify_daemon)
		notify_item_queue(&req->item, KSMBD_NOTIFY_ITEM_TYPE_REQUEST);
}

/* The client's user may see nothing of what @req was completed with. */
void notify_request_withheld(struct ksmbd_notify_request *req)
{
	struct ksmbd_notify_request *next = req;

	lockdep_assert_held(&notify_lock);

	/* The oldest is answered first: with what a later one was to get. */
	if (!req->status) {
		list_for_each_entry_continue(next, &req->watch->requests, entry)
			if (next->told) {
				req->told = next->told;
				next->told = NULL;
				notify_request_charge(req, next->bytes);
				request_offer_again(next);
				notify_request_send(req);
				return;
			}
	}
	request_offer_again(req);
}

/**
 * ksmbd_notify_complete() - the daemon tells a request how to end
 * @daemon:	port id of the calling socket
 * @id:		request id
 * @told:	how, owned by the request after success
 *
 * Nothing but that can end the request now, unless its user may see none of
 * the records.
 *
 * Return:	0, -EPERM if @daemon is not registered, -ENOENT if the request has
 *		ended
 */
int ksmbd_notify_complete(u32 daemon, u64 id, struct notify_told *told)
{
	struct ksmbd_notify_request *req, *oldest;
	struct notify_told *spare = NULL;
	struct ksmbd_conn *conn = NULL;
	int err = -ENOENT;

	spin_lock(&notify_lock);
	if (daemon != notify_daemon) {
		err = -EPERM;
		goto out;
	}
	hash_for_each_possible(notify_requests, req, hash, id)
		if (req->item.id == id && req->known)
			break;
	if (!req)
		goto out;
	/*
	 * An older request, all of whose records were withheld, may pend again,
	 * which the daemon does not know yet: it is answered first.
	 */
	list_for_each_entry(oldest, &req->watch->requests, entry)
		if (!oldest->taken && oldest->known)
			break;
	if (oldest != req) {
		notify_item_unqueue(&oldest->item);
		notify_item_queue(&req->item, KSMBD_NOTIFY_ITEM_TYPE_REQUEST);
		req = oldest;
	}
	if (!request_account(req, told->length + told->room)) {
		spare = told;
		told = &notify_too_much;
	}
	/* It stays in watch->requests, where an end is noted as req->status. */
	req->taken = true;
	hash_del(&req->hash);
	req->watch->promised = true;
	req->watch->told = true;
	if (told->below)
		told->dir = get_file(req->watch->dir);
	if ((told->below || told->room <= NOTIFY_SEND_HERE) &&
	    notify_conn_claim(req->work->conn))
		conn = req->work->conn;
	req->told = told;
	notify_request_set_handled(req);
	notify_request_send(req);
	err = 0;
out:
	spin_unlock(&notify_lock);
	notify_told_free(spare);
	notify_conn_send(conn);
	return err;
}
