#!/usr/bin/node
// SPDX-License-Identifier: GPL-2.0-or-later
// watch.js SHARE USER%PASSWORD DIR: node-smb2 watches a directory as a tree, with every completion filter and 64 KiB as it
// always does, and prints what it is told, as smbclient's notify does.
'use strict';

const { Client } = require('/opt/node_modules/node-smb2').default;

console.log = () => {}; // the library says on it how it authenticates

async function main(share, login, dir) {
	const [username, password] = login.split('%');
	const client = new Client('127.0.0.1');
	const session = await client.authenticate({ domain: 'WORKGROUP', username, password, forceNtlmVersion: 'v2' });
	const tree = await session.connectTree(share);
	await tree.watchDirectory(dir, (response) => {
		for (const { action, filename } of response.data)
			process.stdout.write(`${action.toString(16).padStart(4, '0')} ${filename.replace(/^\.\//, '')}\n`);
	}, true);
}

main(...process.argv.slice(2)).catch((err) => {
	console.error(err instanceof Error ? String(err) : `${err.header.type} is answered ${err.header.status.toString(16)}`);
	process.exit(1);
});
